# SPDX-License-Identifier: Apache-2.0
"""Which tokens are trained on: those that the assistant wrote, the mark that ends its turn included.

Everything is tokenised before training starts: a conversation that cannot be used is found out in
seconds, not in the middle of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.errors import InputError
from model.processor.chat import Rendered, render
from model.processor.tokenizer import Tokenizer
from trainer.data.example import Example
from trainer.data.sources import LongRows, raise_faults

TRAINING_REMEDY = "data.max_length_tokens; data.long_rows=skip leaves such rows out"


@dataclass(frozen=True, eq=False)
class TokenRow:
    """A conversation as tokens; ``supervised`` is True where the token is one to learn to say."""

    ids: Int[Tensor, " seq"]
    supervised: Bool[Tensor, " seq"]
    where: str


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows to learn from or be measured on, the examples they were made of, and how many were too long."""

    rows: list[TokenRow]
    examples: list[Example]
    num_skipped: int


def tokenize(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_length_tokens: int,
    long_rows: LongRows,
    remedy: str = TRAINING_REMEDY,
) -> TokenRows:
    """Turn conversations into rows, ``examples[i]`` of the result into ``rows[i]``.

    Args:
        examples: Conversations.
        tokenizer: That of the model.
        max_length_tokens: Tokens that a row may have.
        long_rows: What becomes of longer ones.
        remedy: What a user can do about one that is refused for its length.

    Raises:
        InputError: Rows are malformed as conversations, have nothing to learn, are longer than
            ``max_length_tokens`` and not to be skipped, or none is left.
    """
    rows: list[TokenRow] = []
    used: list[Example] = []
    faults: list[str] = []
    num_skipped = 0
    for example in examples:
        try:
            row = supervise(render(example.messages), tokenizer, where=example.where)
        except InputError as error:
            faults.append(f"{example.where}: messages: {error}")
            continue
        if not row.supervised[1:].any():
            faults.append(f"{example.where}: messages: found no token of the assistant's; expected at least one")
        elif len(row.ids) <= max_length_tokens:
            rows.append(row)
            used.append(example)
        elif long_rows is LongRows.skip:
            num_skipped += 1
        else:
            faults.append(
                f"{example.where}: messages: found {len(row.ids)} tokens; expected at most {max_length_tokens}"
                f" ({remedy})"
            )
    raise_faults(faults, total=len(examples))
    if not rows:
        raise InputError(
            f"data: none of {len(examples)} rows is left, {num_skipped} of them being longer than {max_length_tokens}"
            " tokens; raise data.max_length_tokens"
        )
    return TokenRows(rows, used, num_skipped)


def supervise(rendered: Rendered, tokenizer: Tokenizer, *, where: str) -> TokenRow:
    """The tokens of a rendered conversation, those wholly inside the assistant's words marked.

    A token that reaches over the border also holds the prompt's characters; the model is not asked to say those.
    """
    encoded = tokenizer.encode_spans(rendered.text)
    supervised = torch.zeros(len(encoded.ids), dtype=torch.bool)
    spans = iter(rendered.assistant)
    span = next(spans, None)
    for position, (start, end) in enumerate(encoded.offsets):
        while span is not None and start >= span[1]:
            span = next(spans, None)
        if span is None:
            break
        supervised[position] = span[0] <= start < end <= span[1]
    return TokenRow(torch.tensor(encoded.ids, dtype=torch.int64), supervised, where)
