# SPDX-License-Identifier: Apache-2.0
"""The towers' shapes, and how their media stand in a text."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from model.errors import ConfigError
from model.tower_config import AudioConfig, MediaTokens, VisionConfig
from tests.tiny import TINY_AUDIO, TINY_VISION

PUBLISHED = {  # of the released files: what we read, and a few fields that nobody reads
    "model_type": "gemma3n",
    "image_token_id": 262_145,
    "boi_token_id": 255_999,
    "eoi_token_id": 262_144,
    "audio_token_id": 262_273,
    "boa_token_id": 256_000,
    "eoa_token_id": 262_272,
    "vision_soft_tokens_per_image": 256,
    "audio_soft_tokens_per_image": 188,
    "vision_config": {
        "architecture": "mobilenetv5_300m_enc",
        "do_pooling": False,
        "hidden_size": 2048,
        "num_classes": 2,
        "vocab_offset": 262_144,
        "vocab_size": 128,
    },
    "audio_config": {
        "conf_attention_chunk_size": 12,
        "conf_attention_invalid_logits_value": -1e9,
        "hidden_size": 1536,
        "sscp_conv_channel_size": [128, 32],
        "sscp_conv_eps": 0.001,
        "sscp_conv_kernel_size": [[3, 3], [3, 3]],
        "vocab_offset": 262_272,
    },
}


def test_the_released_files_say_what_is_the_default() -> None:
    assert VisionConfig.parse(PUBLISHED) == VisionConfig() == VisionConfig.parse({})
    assert AudioConfig.parse(PUBLISHED) == AudioConfig() == AudioConfig.parse({})


def test_what_is_published_is_read_back_the_same() -> None:
    assert VisionConfig.parse({"vision_config": TINY_VISION.publish()} | TINY_VISION.publish_tokens()) == TINY_VISION
    assert AudioConfig.parse({"audio_config": TINY_AUDIO.publish()} | TINY_AUDIO.publish_tokens()) == TINY_AUDIO


def test_ids_and_length_of_a_medium_come_from_the_top_level() -> None:
    other = PUBLISHED | {"boa_token_id": 7, "audio_soft_tokens_per_image": 9}
    assert AudioConfig.parse(other).tokens == MediaTokens(
        placeholder_id=262_273, begin_id=7, end_id=262_272, per_item=9
    )
    assert VisionConfig.parse(other) == VisionConfig()


def test_a_run_that_is_too_long_is_filled_with_the_last_id_of_the_sounds_vocabulary() -> None:
    assert AudioConfig().padding_id == 262_399
    assert TINY_AUDIO.padding_id == TINY_AUDIO.ids[-1]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"vision_config": {"do_pooling": True}}, "do_pooling is true"),
        ({"vision_config": {"hidden_size": 0}}, "vision_config: hidden_size is 0; it must be positive"),
        ({"vision_config": {"hidden_size": "wide"}}, "must be of the kind of 2048"),
        ({"vision_config": {"vocab_size": True}}, "must be of the kind of 128"),
        ({"vision_config": {"vocab_size": 1}}, "the last two of 262144 to 262144"),
        ({"vision_config": 3}, "vision_config is 3; it must be an object"),
        ({"image_token_id": 5}, "the last two of 262144 to 262271"),
        ({"eoi_token_id": 262_145}, "begin, placeholder and end must be three ids"),
        ({"boi_token_id": 262_145}, "begin, placeholder and end must be three ids"),
        ({"vision_config": {"rms_norm_eps": float("nan")}}, "rms_norm_eps is nan; it must be positive and finite"),
        ({"vision_config": {"rms_norm_eps": float("inf")}}, "rms_norm_eps is inf; it must be positive and finite"),
        ({"vision_config": {"model_args": {"depth": 3}}}, r"model_args is {'depth': 3}; .* leave model_args out"),
        ({"vision_soft_tokens_per_image": 0}, "per_item at least 1"),
        ({"image_token_id": "<image>"}, "image_token_id is '<image>'; it must be of the kind of 0"),
    ],
)
def test_a_vision_config_of_something_else_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VisionConfig.parse(PUBLISHED | part)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conf_num_attention_heads": 7}, "hidden_size 1536 cannot be shared evenly by 7 heads"),
        ({"conf_attention_context_right": -1}, "conf_attention_context_right is -1; it must be positive"),
        ({"sscp_conv_kernel_size": [3, 3]}, r"sscp_conv_kernel_size is 3; it must be a list of 2 like \(3, 3\)"),
        ({"sscp_conv_channel_size": [128]}, "must be a list of 2"),
        ({"sscp_conv_channel_size": [128, 0]}, r"sscp_conv_channel_size is \(128, 0\); it must be positive"),
        ({"sscp_conv_stride_size": [[2, 2], [-2, 2]]}, "sscp_conv_stride_size is .* must be positive"),
        ({"gradient_clipping": float("nan")}, "gradient_clipping is nan; it must be positive and finite"),
        ({"conf_residual_weight": "half"}, "must be of the kind of 0.5"),
    ],
)
def test_an_audio_config_of_something_else_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"audio_config: .*{message}"):
        AudioConfig.parse({"audio_config": fields})


def test_no_context_to_the_right_is_a_config() -> None:
    assert dataclasses.replace(TINY_AUDIO, conf_attention_context_right=0) == TINY_AUDIO
    assert dataclasses.replace(TINY_AUDIO, conf_attention_context_right=2).conf_attention_context_right == 2


@pytest.mark.parametrize("nothing", [None, {}])
def test_arguments_of_the_tower_may_be_none(nothing: object) -> None:
    part = {**PUBLISHED["vision_config"], "model_args": nothing}
    assert VisionConfig.parse(PUBLISHED | {"vision_config": part}) == VisionConfig()


def test_the_longest_clip_fills_a_run_of_placeholders() -> None:
    assert AudioConfig().max_frames == 188 * 16
    strides = ((3, 2), (1, 2))  # time, frequency
    assert dataclasses.replace(TINY_AUDIO, sscp_conv_stride_size=strides, conf_reduction_factor=5).max_frames == 12 * 15
