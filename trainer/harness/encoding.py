# SPDX-License-Identifier: Apache-2.0
"""Texts of lm-evaluation-harness as tokens, to the id what its own backend for transformers makes of them.

What is scored is cut from the tokens of prompt and continuation together, so that a word is cut as in running text.
Where a text gets a ``<bos>`` follows ``add_bos``: by default as ``tokenizer.json`` says, which of Gemma puts one in
front of every text that does not begin with one.

Source: lm-evaluation-harness 0.4.13, ``TemplateLM`` and ``HFLM``; the code is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from model.errors import ConfigError, InputError
from model.processor.tokenizer import BOS, Tokenizer
from trainer.data.supervise import TokenRow


@dataclass(frozen=True)
class Split:
    """Tokens that are given, and those behind them that are scored."""

    given: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How texts become tokens.

    Args:
        tokenizer: The checkpoint's.
        max_length: Tokens that the model is given at most; of longer texts the first ones are left out.
        add_bos: Whether texts begin with ``<bos>``; None: as ``tokenizer.json`` says.

    Raises:
        ConfigError: ``max_length`` is no length.
    """

    tokenizer: Tokenizer
    max_length: int
    add_bos: bool | None = None

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ConfigError(f"lm_eval: max_length is {self.max_length}; it must be at least 1")

    def encode(self, text: str) -> list[int]:
        """A text that stands alone, with its ``<bos>`` if it is to have one and does not say it itself."""
        if text.startswith(BOS) or self.add_bos is False:
            return self.tokenizer.encode(text)
        if self.add_bos:
            return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        return self.tokenizer.encode_marked(text)

    def pair(self, context: str, continuation: str) -> Split:
        """A prompt and what may follow; space at the prompt's end is scored with what follows.

        Raises:
            InputError: There is nothing to score, or nothing before it.
        """
        if not context:
            scored = self.tokenizer.encode(continuation)
            if scored[:1] == [self.tokenizer.bos_id]:
                return checked(Split((scored[0],), tuple(scored[1:])), continuation)
            return checked(Split((self.tokenizer.bos_id,), tuple(scored)), continuation)
        shorter = context.rstrip()
        given = self.encode(shorter)
        whole = self.encode(shorter + context[len(shorter) :] + continuation)
        return checked(Split(tuple(given), tuple(whole[len(given) :])), continuation)

    def windows(self, text: str) -> Iterator[Split]:
        """A text in parts of which each token is scored once, behind as much of the text as the model reads at once.

        The first part follows ``<bos>``. The last one is given more than a token if that makes it as long as the
        others.
        """
        ids, begin, most = self.encode(text), self.tokenizer.bos_id, self.max_length
        for start in range(0, len(ids), most):
            end = min(start + most, len(ids))
            given = ids[max(end - most - 1, 0) : start] if start else [begin]
            yield Split(tuple(given), tuple(ids[start:end]))

    def prompt(self, text: str, new_tokens: int) -> tuple[int, ...]:
        """What a text is continued from: its last tokens, as many as leave room for the new ones.

        Raises:
            ConfigError: So many new tokens leave no room.
            InputError: The text has no tokens.
        """
        room = self.max_length - new_tokens
        if room < 1:
            raise ConfigError(
                f"lm_eval: {new_tokens} new tokens (max_gen_toks) leave no room for a prompt in"
                f" {self.max_length} (max_length); ask for fewer, or raise max_length"
            )
        ids = self.encode(text)
        if not ids:
            raise InputError("lm_eval: a prompt has no tokens; let texts begin with <bos> (add_bos_token=true)")
        return tuple(ids[-room:])

    def row(self, split: Split, where: str) -> TokenRow:
        """What is given and scored as one row, the first tokens left out where it is too long.

        Raises:
            InputError: What is scored alone is too long.
        """
        if len(split.scored) > self.max_length:
            raise InputError(
                f"{where}: {len(split.scored)} tokens are to be scored behind one prompt, but max_length is"
                f" {self.max_length}; raise it, or leave the task out"
            )
        ids = torch.tensor([*split.given, *split.scored][-(self.max_length + 1) :])
        supervised = torch.zeros(len(ids), dtype=torch.bool)
        supervised[-len(split.scored) :] = True
        return TokenRow(ids, supervised, where)


def checked(split: Split, continuation: str) -> Split:
    """The split, or InputError where one half has no tokens."""
    if not split.scored:
        raise InputError(
            f"lm_eval: {continuation[:40]!r} adds no token to its prompt, so there is nothing to score; mend the"
            " task's choices or target_delimiter"
        )
    if not split.given:
        raise InputError("lm_eval: a prompt has no tokens; let texts begin with <bos> (add_bos_token=true)")
    return split


def longest_first(lengths: Sequence[int]) -> list[int]:
    """The places of items by length: what does not fit into memory shows at once, and little is padding."""
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])
