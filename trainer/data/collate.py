# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths side by side, padded on the right, and their media decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from model.errors import InputError
from model.inputs import Audio, Images, Inputs
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from trainer.data.batch import IGNORED, Batch
from trainer.data.supervise import TokenRow

Medium = TypeVar("Medium", Picture, Recording)


@dataclass(frozen=True)
class Collator:
    """Makes batches of rows.

    Args:
        pad_id: What stands behind the shorter rows.
        processor: What is done to their media; None where no row has any.
    """

    pad_id: int
    processor: Processor | None = None

    def __call__(self, rows: Sequence[TokenRow]) -> Batch:
        """One batch of ``rows``, as wide as the longest less one: the last token of a row is only ever a label.

        Raises:
            InputError: A medium cannot be decoded; the row it is in is named.
        """
        width = max(len(row.ids) for row in rows) - 1
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
        for index, row in enumerate(rows):
            length = len(row.ids) - 1
            ids[index, :length] = row.ids[:-1]
            mask[index, :length] = True
            labels[index, :length] = row.ids[1:].masked_fill(~row.supervised[1:], IGNORED)
        inputs = Inputs(ids=ids, mask=mask, images=self.images(rows), audio=self.audio(rows))
        return Batch(inputs, labels, len(rows))

    def images(self, rows: Sequence[TokenRow]) -> Images | None:
        """The pictures of all rows in order, decoded."""
        if not any(row.pictures for row in rows):
            return None
        assert self.processor is not None
        assert self.processor.images is not None, "rows with pictures are refused where there is no tower for them"
        decode = self.processor.images
        return Images(pixels=torch.stack([decoded(decode, row, one) for row in rows for one in row.pictures]))

    def audio(self, rows: Sequence[TokenRow]) -> Audio | None:
        """The recordings of all rows in order, decoded."""
        if not any(row.recordings for row in rows):
            return None
        assert self.processor is not None
        assert self.processor.audio is not None, "rows with recordings are refused where there is no tower for them"
        decode = self.processor.audio
        return Audio.of([decoded(decode, row, one) for row in rows for one in row.recordings])


def decoded(decode: Callable[[Medium], Tensor], row: TokenRow, medium: Medium) -> Tensor:
    """A medium of ``row`` as numbers; what is wrong with it is said with the row's place."""
    try:
        return decode(medium)
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from None
