# SPDX-License-Identifier: Apache-2.0
"""Rows made ready for a model to score, with what it has to read alike for several of them there once.

A row's last token is only ever scored, never read. So choices of one token behind a common prompt, such as the letters
of a question's answers, are read as one, and so is whatever else is asked of the same text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from trainer.data.batch import Batch
from trainer.data.supervise import TokenRow


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is read, and where in it the supervised tokens of the rows are scored, those of one row after another's.

    Args:
        batch: What is read; its labels are not looked at.
        lengths: How many supervised tokens each row has.
        reads: Of each supervised token, which sequence of the batch its row reads.
        columns: Of each, the place in there of the token before it.
        answers: Their ids.
    """

    batch: Batch
    lengths: tuple[int, ...]
    reads: Int[Tensor, " supervised"]
    columns: Int[Tensor, " supervised"]
    answers: Int[Tensor, " supervised"]

    @classmethod
    def of(cls, rows: Sequence[TokenRow], collate: Callable[[Sequence[TokenRow]], Batch]) -> Prepared:
        """The rows together; ``collate`` makes a batch of those that differ in what is read.

        Raises:
            InputError: A medium cannot be decoded.
        """
        numbers: dict[tuple[object, ...], int] = {}
        first: list[TokenRow] = []
        reads, columns, answers = [], [], []
        for row in rows:
            number = numbers.setdefault((row.ids[:-1].numpy().tobytes(), *row.media), len(numbers))
            if number == len(first):
                first.append(row)
            scored = row.supervised[1:].nonzero()[:, 0]
            reads.append(torch.full_like(scored, number))
            columns.append(scored)
            answers.append(row.ids[1:][scored])
        return cls(
            batch=collate(first), lengths=tuple(map(len, columns)), reads=torch.cat(reads),
            columns=torch.cat(columns), answers=torch.cat(answers),
        )  # fmt: skip

    def to(self, device: torch.device | str) -> Prepared:
        """The same on another device."""
        return dataclasses.replace(
            self, batch=self.batch.to(device), reads=self.reads.to(device), columns=self.columns.to(device),
            answers=self.answers.to(device),
        )  # fmt: skip
