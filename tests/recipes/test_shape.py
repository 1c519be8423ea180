# SPDX-License-Identifier: Apache-2.0
"""Shapes as written in conf/model describe towers as the published ``config.json`` does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from model.config import ModelConfig
from model.errors import ConfigError
from model.tower_config import AudioConfig, Modality, VisionConfig
from recipes.shape import AudioShape, ShapeConfig, VisionShape
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION, tiny_multimodal_config

TINY_VISION_SHAPE = VisionShape(
    architecture="mobilenetv5_tiny_enc", hidden_size=64, vocab_size=8, vocab_offset=80,
    image_token_id=81, boi_token_id=78, eoi_token_id=80, vision_soft_tokens_per_image=16,
)  # fmt: skip
TINY_AUDIO_SHAPE = AudioShape(
    hidden_size=32, input_feat_size=16, vocab_size=8, vocab_offset=88, conf_num_attention_heads=4,
    conf_num_hidden_layers=3, conf_attention_chunk_size=5, conf_attention_context_left=7, sscp_conv_channel_size=[8, 6],
    audio_token_id=89, boa_token_id=79, eoa_token_id=88, audio_soft_tokens_per_image=12,
)  # fmt: skip


def tiny_shape(**changes: Any) -> ShapeConfig:
    """The tiny multimodal config as a person would write it."""
    text = {known.name: getattr(TINY_TEXT, known.name, None) for known in dataclasses.fields(ShapeConfig)}
    values: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in text.items()}
    return ShapeConfig(**values | {"vision": TINY_VISION_SHAPE, "audio": TINY_AUDIO_SHAPE} | changes)


def test_a_written_shape_becomes_the_model_it_describes() -> None:
    assert tiny_shape().to_model_config() == tiny_multimodal_config()


def test_towers_are_by_default_as_published() -> None:
    assert VisionShape().to_tower_config() == VisionConfig()
    assert AudioShape().to_tower_config() == AudioConfig()


def test_without_sections_there_are_no_towers() -> None:
    assert tiny_shape(vision=None, audio=None).to_model_config().modalities == (Modality.text,)


def test_a_checkpoint_of_the_same_shape_passes() -> None:
    tiny_shape().check(tiny_multimodal_config(), "here")


@pytest.mark.parametrize("loaded", [[], [Modality.vision], [Modality.audio]])
def test_only_towers_that_are_loaded_are_compared(loaded: list[Modality]) -> None:
    tiny_shape().check(tiny_multimodal_config().only(loaded), "here")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"vision": dataclasses.replace(TINY_VISION, hidden_size=96)}, "vision.hidden_size is 96, not 64"),
        ({"audio": dataclasses.replace(TINY_AUDIO, conf_num_hidden_layers=2)}, "audio.conf_num_hidden_layers is 2, no"),
        (
            {"audio": dataclasses.replace(TINY_AUDIO, tokens=dataclasses.replace(TINY_AUDIO.tokens, per_item=11))},
            "audio.audio_soft_tokens_per_image is 11, not 12",
        ),
    ],
    ids=["vision", "audio", "ids"],
)
def test_a_tower_of_another_shape_is_refused(found: dict[str, Any], told: str) -> None:
    model = ModelConfig(**{"text": TINY_TEXT, "vision": TINY_VISION, "audio": TINY_AUDIO, **found})
    with pytest.raises(ConfigError, match=f"in 'here' has another shape than model= says: {told}"):
        tiny_shape().check(model, "here")


def test_a_tower_that_the_shape_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="has a tower for vision, of which model= says nothing"):
        tiny_shape(vision=None).check(tiny_multimodal_config(), "here")


def test_a_tower_that_contradicts_the_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="model: config: a tower's ids are 70 to 77"):
        tiny_shape(
            vision=dataclasses.replace(TINY_VISION_SHAPE, vocab_offset=70, image_token_id=71, eoi_token_id=70)
        ).to_model_config()
