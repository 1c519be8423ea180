# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of all that a whole model owns, towers included: what its files must hold, and what is counted."""

from __future__ import annotations

from model.audio.shapes import audio_shapes
from model.config import ModelConfig, TextConfig
from model.slicing.count import Layout, text_shapes
from model.tower_config import TowerConfig
from model.vision.shapes import vision_shapes


def model_shapes(config: ModelConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole model's tensors: the text decoder's, and those of the towers it has.

    Raises:
        ConfigError: A tower's sizes do not fit each other.
    """
    return text_shapes(config.text, layout) | tower_shapes(config)


def tower_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model's towers and their embedders.

    Raises:
        ConfigError: A tower's sizes do not fit each other.
    """
    parts = {
        "vision_tower": config.vision and vision_shapes(config.vision),
        "audio_tower": config.audio and audio_shapes(config.audio),
        "embed_vision": config.vision and embedder_shapes(config.vision, config.text),
        "embed_audio": config.audio and embedder_shapes(config.audio, config.text),
    }
    return {f"model.{part}.{name}": shape for part, shapes in parts.items() if shapes for name, shape in shapes.items()}


def embedder_shapes(tower: TowerConfig, text: TextConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what brings a tower's soft tokens, and its ids, into the text's dimension."""
    return {
        "embedding.weight": (tower.vocab_size, tower.hidden_size),
        "hard_embedding_norm.weight": (tower.hidden_size,),
        "soft_embedding_norm.weight": (tower.hidden_size,),
        "embedding_projection.weight": (text.hidden_size, tower.hidden_size),
    }
