# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths side by side, padded on the right, and their media decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from model.errors import InputError
from model.gemma3n import side_by_side
from model.inputs import Audio, Images, Inputs, SoftTokens
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from trainer.data.batch import IGNORED, Batch
from trainer.data.supervise import TokenRow
from trainer.soft_token_cache import SoftTokenCache

Medium = TypeVar("Medium")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Collator:
    """Makes batches of rows.

    Args:
        pad_id: What stands behind the shorter rows.
        processor: What is done to their media; None where no row has any.
        cache: Soft tokens of media that need not be decoded.
    """

    pad_id: int
    processor: Processor | None = None
    cache: SoftTokenCache | None = None

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
        pictures = tuple(picture for row in rows for picture in row.pictures)
        recordings = tuple(recording for row in rows for recording in row.recordings)
        return Batch(inputs, labels, len(rows), pictures, recordings)

    def images(self, rows: Sequence[TokenRow]) -> Images | SoftTokens | None:
        """The pictures of all rows in order: decoded, or what is known of them already, if that is all of them."""
        media = [(row, picture) for row in rows for picture in row.pictures]
        if not media:
            return None
        if (known := self.known(media)) is not None:
            return known
        assert self.processor is not None
        assert self.processor.images is not None, "rows with pictures are refused where there is no tower for them"
        decode = self.processor.images
        return Images(pixels=torch.stack([named(decode, row, picture) for row, picture in media]))

    def audio(self, rows: Sequence[TokenRow]) -> Audio | SoftTokens | None:
        """The recordings of all rows in order: decoded, or what is known of them already, if that is all of them."""
        media = [(row, recording) for row in rows for recording in row.recordings]
        if not media:
            return None
        if (known := self.known(media)) is not None:
            return known
        assert self.processor is not None
        assert self.processor.audio is not None, "rows with recordings are refused where there is no tower for them"
        decode = self.processor.audio
        return Audio.of([named(decode, row, recording) for row, recording in media])

    def known(self, media: Sequence[tuple[TokenRow, Picture | Recording]]) -> SoftTokens | None:
        """Soft tokens of all of ``media``; None unless each of them is kept."""
        if self.cache is None:
            return None
        items: list[SoftTokens] = []
        for row, medium in media:
            kept = named(self.cache.read, row, medium)
            if kept is None:
                return None
            items.append(kept)
        return side_by_side(items)


def named(read: Callable[[Medium], Read], row: TokenRow, medium: Medium) -> Read:
    """What is read of a medium of ``row``; what is wrong with it is said with the row's place."""
    try:
        return read(medium)
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from None
