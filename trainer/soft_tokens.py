# SPDX-License-Identifier: Apache-2.0
"""Soft tokens made once for all the sub-models that read them: a spec cuts the text decoder, never a tower."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from model.gemma3n import Gemma3n, learns, side_by_side
from model.inputs import Audio, Images, SoftTokens
from model.text.decoder import Decoder
from trainer.data.batch import Batch
from trainer.soft_token_cache import SoftTokenCache


@dataclass(frozen=True)
class SharedTowers:
    """The towers of a model, as far as no gradient flows to them.

    Args:
        gemma: The model itself, not what wraps it.
        cache: Where soft tokens are kept; only for towers that are never trained.
    """

    gemma: Gemma3n
    cache: SoftTokenCache | None = None

    @property
    def decoder(self) -> Decoder:
        """What reads their soft tokens."""
        return self.gemma.model.language_model

    def encode(self, batch: Batch) -> Batch:
        """The same batch with soft tokens for the media of frozen towers, and of all where no gradient is taken.

        Media of a tower that is trained are left as they are: each forward pass makes a graph of its own.
        """
        towers, inputs = self.gemma.model, batch.inputs
        images, audio = inputs.images, inputs.audio
        if isinstance(images, Images) and towers.vision_tower is not None and not learns(towers.vision_tower):
            images = towers.see(images) if self.cache is None else self.see_and_keep(images, batch, self.cache)
        if isinstance(audio, Audio) and towers.audio_tower is not None and not learns(towers.audio_tower):
            audio = towers.hear(audio) if self.cache is None else self.hear_and_keep(audio, batch, self.cache)
        return dataclasses.replace(batch, inputs=dataclasses.replace(inputs, images=images, audio=audio))

    def see_and_keep(self, images: Images, batch: Batch, cache: SoftTokenCache) -> SoftTokens:
        """What ``Towers.see`` gives, item by item into the cache."""
        items = [self.gemma.model.see(Images(pixels=image)) for image in images.pixels.split(1)]
        for picture, item in zip(batch.pictures, items, strict=True):
            cache.write(picture, item)
        return side_by_side(items)

    def hear_and_keep(self, audio: Audio, batch: Batch, cache: SoftTokenCache) -> SoftTokens:
        """What ``Towers.hear`` gives, item by item into the cache."""
        clips = zip(audio.frames.split(1), audio.mask.split(1), strict=True)
        items = [self.gemma.model.hear(Audio(frames=frames, mask=mask)) for frames, mask in clips]
        for recording, item in zip(batch.recordings, items, strict=True):
            cache.write(recording, item)
        return side_by_side(items)
