# SPDX-License-Identifier: Apache-2.0
"""Rows end to end and side by side, padded on the right, and their media decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from model.errors import InputError
from model.generation.generate import pad_left
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
    """Makes batches of rows, or of packs of them.

    Args:
        pad_id: What stands behind the shorter rows.
        processor: What is done to their media; None where no row has any.
        cache: Soft tokens of media that need not be decoded.
    """

    pad_id: int
    processor: Processor | None = None
    cache: SoftTokenCache | None = None

    def __call__(self, rows: Sequence[TokenRow]) -> Batch:
        """One batch of ``rows``, each alone."""
        return self.of_packs([[row] for row in rows])

    def of_packs(self, packs: Sequence[Sequence[TokenRow]]) -> Batch:
        """One batch, the rows of each pack end to end, as wide as the longest pack.

        The last token of a row is only ever a label, so it is no input, and no label stands for another row's token.
        Padding behind several rows is a document of its own.

        Raises:
            InputError: A medium cannot be decoded; the row it is in is named.
        """
        width = max(sum(len(row.ids) - 1 for row in pack) for pack in packs)
        ids = torch.full((len(packs), width), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(packs), width, dtype=torch.bool)
        labels = torch.full((len(packs), width), IGNORED, dtype=torch.int64)
        documents = torch.zeros(len(packs), width, dtype=torch.int64)
        for index, pack in enumerate(packs):
            end = 0
            for row in pack:
                start, end = end, end + len(row.ids) - 1
                ids[index, start:end] = row.ids[:-1]
                labels[index, start:end] = row.ids[1:].masked_fill(~row.supervised[1:], IGNORED)
                documents[index, end:] += 1
            mask[index, :end] = True
        rows = [row for pack in packs for row in pack]
        # A row alone is not said to be one: then its padding is not either, and nothing has to be looked at.
        packed = len(rows) > len(packs)
        return self.with_media(Inputs(ids=ids, mask=mask, documents=documents if packed else None), labels, rows)

    def prompts(self, rows: Sequence[TokenRow]) -> Batch:
        """One batch of all tokens of ``rows``, ending together, to be gone on with; there are no labels.

        Raises:
            InputError: A medium cannot be decoded; the row it is in is named.
        """
        inputs = pad_left([row.ids.tolist() for row in rows], self.pad_id)
        return self.with_media(inputs, torch.full_like(inputs.ids, IGNORED), rows)

    def with_media(self, inputs: Inputs, labels: Int[Tensor, "batch seq"], rows: Sequence[TokenRow]) -> Batch:
        """A batch of rows of tokens, their media decoded."""
        pictures = [(row, picture) for row in rows for picture in row.pictures]
        recordings = [(row, recording) for row in rows for recording in row.recordings]
        seen, heard = self.known(pictures), self.known(recordings)
        images, audio = self.images(unknown(pictures, seen)), self.audio(unknown(recordings, heard))
        return Batch(
            dataclasses.replace(inputs, images=images, audio=audio), labels, len(rows),
            pictures=tuple(picture for _, picture in pictures), recordings=tuple(sound for _, sound in recordings),
            seen=seen, heard=heard,
        )  # fmt: skip

    def images(self, media: Sequence[tuple[TokenRow, Picture]]) -> Images | None:
        """Pictures decoded, in order."""
        if not media:
            return None
        assert self.processor is not None
        assert self.processor.images is not None, "rows with pictures are refused where there is no tower for them"
        decode = self.processor.images
        return Images(pixels=torch.stack(once(decode, media)))

    def audio(self, media: Sequence[tuple[TokenRow, Recording]]) -> Audio | None:
        """Recordings decoded, in order."""
        if not media:
            return None
        assert self.processor is not None
        assert self.processor.audio is not None, "rows with recordings are refused where there is no tower for them"
        decode = self.processor.audio
        return Audio.of(once(decode, media))

    def known(self, media: Sequence[tuple[TokenRow, Picture | Recording]]) -> tuple[SoftTokens | None, ...]:
        """The soft tokens that are kept of each of ``media``; nothing where none are kept at all."""
        cache = self.cache
        return () if cache is None else tuple(once(cache.read, media))


def unknown(media: Sequence[Medium], known: Sequence[SoftTokens | None]) -> list[Medium]:
    """Those of ``media`` that have to be decoded."""
    return [medium for medium, soft in zip(media, known, strict=True) if soft is None] if known else list(media)


def once(read: Callable[[Medium], Read], media: Sequence[tuple[TokenRow, Medium]]) -> list[Read]:
    """What is read of each of ``media``; one that stands there several times is read once."""
    found: dict[Medium, Read] = {}
    for row, medium in media:
        if medium not in found:
            found[medium] = named(read, row, medium)
    return [found[medium] for _, medium in media]


def named(read: Callable[[Medium], Read], row: TokenRow, medium: Medium) -> Read:
    """What is read of a medium of ``row``; what is wrong with it is said with the row's place."""
    try:
        return read(medium)
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from None
