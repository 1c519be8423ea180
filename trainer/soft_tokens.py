# SPDX-License-Identifier: Apache-2.0
"""Soft tokens made once for all the sub-models that read them: a spec cuts the text decoder, never a tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from model.gemma3n import Gemma3n, learns, side_by_side
from model.inputs import Audio, Images, SoftTokens
from model.processor.media import Picture, Recording
from trainer.data.batch import Batch
from trainer.soft_token_cache import SoftTokenCache

Items = TypeVar("Items", Images, Audio)


@dataclass(frozen=True)
class SharedTowers:
    """The towers of a model, as far as no gradient flows to them; what stands in a batch twice goes through once.

    Args:
        gemma: The model itself, not what wraps it.
        cache: Where soft tokens are kept; only for towers that are never trained.
    """

    gemma: Gemma3n
    cache: SoftTokenCache | None = None

    def encode(self, batch: Batch) -> Batch:
        """The same batch with soft tokens for the media of frozen towers, and of all where no gradient is taken.

        Media of a tower that is trained are left as they are: each forward pass makes a graph of its own.
        """
        towers, inputs = self.gemma.model, batch.inputs
        images, audio = inputs.images, inputs.audio
        if self.cache is not None:
            images = self.seen(batch, self.cache) if batch.pictures else None
            audio = self.heard(batch, self.cache) if batch.recordings else None
        if isinstance(images, Images) and towers.vision_tower is not None and not learns(towers.vision_tower):
            images = each_once(towers.see, images, batch.pictures)
        if isinstance(audio, Audio) and towers.audio_tower is not None and not learns(towers.audio_tower):
            audio = each_once(towers.hear, audio, batch.recordings)
        inputs = dataclasses.replace(inputs, images=images, audio=audio)
        return dataclasses.replace(batch, inputs=inputs, seen=(), heard=())

    def seen(self, batch: Batch, cache: SoftTokenCache) -> SoftTokens:
        """What ``Towers.see`` gives for all pictures: what is known of them, and the rest item by item, to be kept."""
        images = batch.inputs.images
        new = iter(images.pixels.split(1) if isinstance(images, Images) else ())
        known = batch.seen or (None,) * len(batch.pictures)
        made: dict[Picture, SoftTokens] = {}
        items: list[SoftTokens] = []
        for picture, soft in zip(batch.pictures, known, strict=True):
            if soft is None:
                pixels = next(new)
                if picture not in made:
                    made[picture] = self.gemma.model.see(Images(pixels=pixels))
                    cache.write(picture, made[picture])
            items.append(made[picture] if soft is None else soft)
        return side_by_side(items)

    def heard(self, batch: Batch, cache: SoftTokenCache) -> SoftTokens:
        """What ``Towers.hear`` gives for all recordings, likewise."""
        audio = batch.inputs.audio
        new = iter(zip(audio.frames.split(1), audio.mask.split(1), strict=True) if isinstance(audio, Audio) else ())
        known = batch.heard or (None,) * len(batch.recordings)
        made: dict[Recording, SoftTokens] = {}
        items: list[SoftTokens] = []
        for recording, soft in zip(batch.recordings, known, strict=True):
            if soft is None:
                frames, mask = next(new)
                if recording not in made:
                    made[recording] = self.gemma.model.hear(Audio(frames=frames, mask=mask))
                    cache.write(recording, made[recording])
            items.append(made[recording] if soft is None else soft)
        return side_by_side(items)


def each_once(encode: Callable[[Items], SoftTokens], items: Items, media: Sequence[Picture | Recording]) -> SoftTokens:
    """Soft tokens of items, each medium through its tower once however often it stands among ``media``.

    Args:
        encode: Gives those of items, none of which depends on the others.
        items: What was decoded.
        media: What from, one for each item; empty if nobody says.
    """
    numbers: dict[Picture | Recording, int] = {}
    places = [numbers.setdefault(medium, len(numbers)) for medium in media]
    if len(numbers) == len(places):
        return encode(items)
    return encode(items.at([places.index(number) for number in range(len(numbers))])).at(places)
