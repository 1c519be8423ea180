# SPDX-License-Identifier: Apache-2.0
"""Which tokens are trained on: those that the assistant wrote, the mark that ends its turn included.

Never soft tokens and what delimits them, whoever shows the medium. Everything is tokenised, and the header of
every medium read, before training starts: a conversation that cannot be used is found out in seconds, not in the
middle of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.config import ModelConfig
from model.errors import InputError
from model.processor.chat import Rendered
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from trainer.data.config import LongRows
from trainer.data.example import Example
from trainer.data.faults import raise_faults

TRAINING_REMEDY = "data.max_length_tokens; data.long_rows=skip leaves such rows out, truncate cuts off their ends"


@dataclass(frozen=True, eq=False)
class TokenRow:
    """A conversation as tokens; ``supervised`` is True where the token is one to learn to say.

    ``pictures`` and ``recordings``, not yet decoded, belong to the runs of placeholders in ``ids``, in order.
    """

    ids: Int[Tensor, " seq"]
    supervised: Bool[Tensor, " seq"]
    where: str
    pictures: tuple[Picture, ...] = ()
    recordings: tuple[Recording, ...] = ()

    @property
    def media(self) -> tuple[Picture | Recording, ...]:
        """Everything that has to be decoded."""
        return (*self.pictures, *self.recordings)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows to learn from or be measured on, the examples they were made of, and how many were too long.

    ``num_skipped`` of the examples are not among the rows, ``num_truncated`` of the rows lack their end.
    """

    rows: list[TokenRow]
    examples: list[Example]
    num_skipped: int
    num_truncated: int = 0


def tokenize(
    examples: Sequence[Example],
    processor: Processor,
    *,
    max_length_tokens: int,
    long_rows: LongRows,
    remedy: str = TRAINING_REMEDY,
) -> TokenRows:
    """Turn conversations into rows, ``examples[i]`` of the result into ``rows[i]``.

    Args:
        examples: Conversations.
        processor: That of the model.
        max_length_tokens: Tokens that a row may have.
        long_rows: What becomes of longer ones.
        remedy: What a user can do about one that is refused for its length.

    Raises:
        InputError: Rows are malformed as conversations, have media that cannot be used, have nothing to learn, are
            longer than ``max_length_tokens`` and to be refused, or none is left.
    """
    rows: list[TokenRow] = []
    used: list[Example] = []
    faults: list[str] = []
    num_skipped = num_truncated = 0
    media_ids = ids_of_media(processor.config)
    for example in examples:
        try:
            row = row_of(example, processor, media_ids)
        except InputError as error:
            faults.append(f"{example.where}: messages: {error}")
            continue
        too_long = len(row.ids) > max_length_tokens
        if too_long and long_rows is LongRows.refuse:
            found = f"found {len(row.ids)} tokens; expected at most {max_length_tokens} ({remedy})"
            faults.append(f"{example.where}: messages: {found}")
            continue
        if too_long:
            shorter = truncated(row, max_length_tokens, media_ids) if long_rows is LongRows.truncate else None
            if shorter is None:
                num_skipped += 1
                continue
            row = shorter
            num_truncated += 1
        rows.append(row)
        used.append(example)
    raise_faults(faults, total=len(examples))
    if not rows:
        raise InputError(
            f"data: none of {len(examples)} rows is left, {num_skipped} of them being longer than {max_length_tokens}"
            " tokens; raise data.max_length_tokens"
        )
    return TokenRows(rows, used, num_skipped, num_truncated)


def row_of(example: Example, processor: Processor, media_ids: Int[Tensor, " ids"]) -> TokenRow:
    """An example as tokens, its media looked at.

    Raises:
        InputError: It is malformed as a conversation, has media that cannot be used, or nothing to learn.
    """
    rendered = processor.render(example.messages)
    for picture in rendered.pictures:
        picture.check()
    row = supervise(rendered, processor.tokenizer, where=example.where)
    row = dataclasses.replace(row, supervised=row.supervised & ~torch.isin(row.ids, media_ids))
    if not row.supervised[1:].any():
        raise InputError("found no token of the assistant's; expected at least one")
    return row


def ids_of_media(config: ModelConfig) -> Int[Tensor, " ids"]:
    """Placeholders and delimiters of all media of a model."""
    towers = (tower for tower in (config.vision, config.audio) if tower is not None)
    return torch.tensor([token for tower in towers for token in tower.tokens.ids], dtype=torch.int64)


def truncated(row: TokenRow, length: int, media_ids: Int[Tensor, " ids"]) -> TokenRow | None:
    """The first ``length`` tokens of a row; None if a run of soft tokens would go, or all there is to learn."""
    if torch.isin(row.ids[length:], media_ids).any() or not row.supervised[1:length].any():
        return None
    return dataclasses.replace(row, ids=row.ids[:length], supervised=row.supervised[:length])


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
    ids = torch.tensor(encoded.ids, dtype=torch.int64)
    return TokenRow(ids, supervised, where, rendered.pictures, rendered.recordings)
