# SPDX-License-Identifier: Apache-2.0
"""Soft tokens made once for all the sub-models that read them: a spec cuts the text decoder, never a tower."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from model.gemma3n import Gemma3n, learns
from model.inputs import Audio, Images
from trainer.data.batch import Batch


@dataclass(frozen=True)
class SharedTowers:
    """The towers of a model, as far as no gradient flows to them.

    Args:
        gemma: The model itself, not what wraps it.
    """

    gemma: Gemma3n

    def encode(self, batch: Batch) -> Batch:
        """The same batch with soft tokens for the media of frozen towers, and of all where no gradient is taken.

        Media of a tower that is trained are left as they are: each forward pass makes a graph of its own.
        """
        towers, inputs = self.gemma.model, batch.inputs
        images, audio = inputs.images, inputs.audio
        if isinstance(images, Images) and towers.vision_tower is not None and not learns(towers.vision_tower):
            images = towers.see(images)
        if isinstance(audio, Audio) and towers.audio_tower is not None and not learns(towers.audio_tower):
            audio = towers.hear(audio)
        return dataclasses.replace(batch, inputs=dataclasses.replace(inputs, images=images, audio=audio))
