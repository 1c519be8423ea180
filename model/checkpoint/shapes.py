# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of all that a whole model owns, towers included: what its files must hold, and what is counted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import torch

from model.audio.tower import AudioTower
from model.config import ModelConfig
from model.gemma3n import media_embedder
from model.slicing.count import Layout, text_shapes
from model.vision.tower import VisionTower


def model_shapes(config: ModelConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole model's tensors: the text decoder's, and those of the towers it has."""
    return text_shapes(config.text, layout) | dict(tower_shapes(config))


@cache  # building the published towers takes about half a second, even without memory for them
def tower_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model's towers and their embedders."""
    with torch.device("meta"):
        parts = {
            "vision_tower": config.vision and VisionTower(config.vision),
            "audio_tower": config.audio and AudioTower(config.audio),
            "embed_vision": media_embedder(config, config.vision),
            "embed_audio": media_embedder(config, config.audio),
        }
    shapes = {
        f"model.{part}.{name}": tuple(parameter.shape)
        for part, module in parts.items()
        if module is not None
        for name, parameter in module.named_parameters()
    }
    return MappingProxyType(shapes)  # shared by all callers
