# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from model.config import LayerType, ModelConfig, TextConfig
from model.errors import ConfigError
from model.tower_config import Modality, TowerConfig
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION, tiny_config, tiny_multimodal_config

OLD_FORM = {  # of the released files: one width, two rotary bases beside each other, keys nobody reads
    "model_type": "gemma3n_text",
    "num_hidden_layers": 35,
    "intermediate_size": 16_384,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "rope_scaling": None,
    "query_pre_attn_scalar": 256,
}
NEW_FORM = {
    "model_type": "gemma3n_text",
    "num_hidden_layers": 35,
    "intermediate_size": [16_384] * 35,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}


def test_old_and_new_form_say_the_same() -> None:
    assert TextConfig.parse(OLD_FORM) == TextConfig.parse(NEW_FORM)


def test_what_is_published_is_read_back_the_same() -> None:
    assert TextConfig.parse(TINY_TEXT.publish()) == TINY_TEXT


def test_e4b_shares_keys_and_values_of_layers_18_and_19() -> None:
    config = TextConfig.parse(OLD_FORM)
    producers = {config.kv_producer(layer) for layer in range(config.first_shared_layer, 35)}
    assert (config.first_shared_layer, producers) == (20, {18, 19})
    assert config.layer_types[19] is LayerType.full_attention


def test_towers_and_unknown_fields_are_carried_along(tmp_path: Path) -> None:
    whole = {
        "model_type": "gemma3n",
        "vision_config": {"architecture": "mobilenetv5_300m_enc", "num_classes": 2},
        "eos_token_id": [1, 106],
        "text_config": OLD_FORM | {"an_unknown_field": 7},
    }
    (tmp_path / "config.json").write_text(json.dumps(whole))
    config = ModelConfig.read(tmp_path)
    published = config.publish()
    assert config.is_multimodal
    assert published["vision_config"].items() >= whole["vision_config"].items()
    assert published["audio_config"]["conf_num_hidden_layers"] == 12  # a file without it means the published tower
    assert published["eos_token_id"] == [1, 106]
    assert config.text.eos_token_id == (1, 106)
    assert published["text_config"]["an_unknown_field"] == 7
    assert published["text_config"]["rope_parameters"]["full_attention"]["rope_theta"] == 1_000_000.0
    assert published["text_config"]["rope_theta"] == 1_000_000.0  # mlx-lm loads no file without it
    assert published["text_config"]["rope_local_base_freq"] == 10_000.0
    assert "rope_scaling" not in published["text_config"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": [8] * 3}, "intermediate_size has 3 entries for 35 layers"),
        ({"intermediate_size": "wide"}, "must be a list with one entry per layer"),
        ({"layer_types": ["chunked_attention"] * 35}, "allowed are sliding_attention, full_attention"),
        ({"num_kv_shared_layers": 35}, "allowed are 0 to 34"),
        ({"num_kv_shared_layers": 33}, "no layer before 2 is of type full_attention"),
        ({"num_hidden_layers": "many"}, "must be a whole number"),
        ({"altup_active_idx": 1}, "Gemma 3n has 0"),
        ({"hidden_activation": "silu"}, "Gemma 3n has 'gelu_pytorch_tanh'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "no scaling is implemented"),
        ({"activation_sparsity_pattern": 0.95}, "must be a list with one entry per layer"),
        ({"activation_sparsity_pattern": [1.0] * 35}, r"shares in \[0, 1\)"),
        ({"num_key_value_heads": 3}, "cannot share 3 key/value heads evenly"),
        ({"hidden_size": "big"}, "hidden_size is 'big'; it must be of the kind of 2048"),
        ({"altup_correct_scale": 1}, "must be of the kind of True"),
        ({"intermediate_size": [None] * 35}, "an entry is of the wrong kind"),
        ({"intermediate_size": [16.5] * 35}, "an entry is of the wrong kind"),
        ({"layer_types": [None] * 35}, "an entry is of the wrong kind"),
        ({"final_logit_softcapping": None}, "Gemma 3n caps its scores"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "must hold an object each for sliding"),
        ({"rope_parameters": {"full_attention": None}}, "must hold an object each for sliding"),
        ({"head_dim": 7}, "needs an even one"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be positive and finite"),
        ({"rope_theta": float("inf")}, "rope_theta is inf; it must be positive and finite"),
        ({"final_logit_softcapping": float("nan")}, "final_logit_softcapping is nan"),
        ({"initializer_range": float("nan")}, "initializer_range and altup_coef_clip must be numbers"),
        ({"altup_coef_clip": float("nan")}, "initializer_range and altup_coef_clip must be numbers"),
        ({"pad_token_id": -1}, "pad_token_id is -1; it must be one of the text's 262144 ids"),
        ({"pad_token_id": 262_144}, "pad_token_id is 262144; it must be one of the text's 262144 ids"),
    ],
)
def test_a_config_of_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextConfig.parse(OLD_FORM | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json there"),
        ("{", "config.json:1: not JSON"),
        ('{"model_type": "gemma3"}', "model_type is 'gemma3'; matslice reads 'gemma3n' and 'gemma3n_text'"),
        ("[]", "config.json: cannot be read .no JSON object.; copy it anew"),
        ("[" * 100_000, "config.json: cannot be read .nested too deeply."),
        ("{}", "model_type is None"),
        ('{"model_type": "gemma3n_text", "num_kv_shared_layers": 99}', "config.json: .*num_kv_shared_layers is 99"),
        ('{"model_type": "gemma3n", "text_config": 3}', "text_config is 3; it must be an object"),
    ],
)  # fmt: skip
def test_a_directory_of_something_else_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        ModelConfig.read(tmp_path)


def written_and_read(config: ModelConfig, directory: Path) -> ModelConfig:
    config.write(directory)
    return ModelConfig.read(directory)


def test_a_config_with_both_towers_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = tiny_multimodal_config()
    assert written_and_read(config, tmp_path) == config
    assert config.modalities == (Modality.text, Modality.vision, Modality.audio)


def test_text_stays_whatever_else_is_asked_for() -> None:
    assert tiny_multimodal_config().only([]) == tiny_config()
    assert tiny_multimodal_config().only([Modality.text]) == tiny_config()
    assert tiny_multimodal_config().only([Modality.audio]).modalities == (Modality.text, Modality.audio)


def test_a_modality_that_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    without_audio = tiny_multimodal_config().only([Modality.vision])
    with pytest.raises(ConfigError, match="audio asked for, but this model has text, vision;"):
        without_audio.only([Modality.text, Modality.audio])


@pytest.mark.parametrize(("kept", "lacking"), [(Modality.vision, "audio"), (Modality.audio, "vision")])
def test_of_a_tower_left_out_the_file_says_null_and_no_ids(tmp_path: Path, kept: Modality, lacking: str) -> None:
    whole = written_and_read(tiny_multimodal_config(), tmp_path)
    part = written_and_read(whole.only([kept]), tmp_path)
    assert part == whole.only([kept])
    assert part.published[f"{lacking}_config"] is None
    ids = {"vision": "image_token_id", "audio": "audio_token_id"}
    assert ids[kept] in part.published
    assert ids[lacking] not in part.published


def test_without_towers_the_file_is_that_of_a_text_model(tmp_path: Path) -> None:
    content = tiny_multimodal_config().publish() | {"eos_token_id": [1, 106], "dtype": "bfloat16"}
    content["text_config"]["an_unknown_field"] = 7
    (tmp_path / "config.json").write_text(json.dumps(content))
    text = written_and_read(ModelConfig.read(tmp_path).only([]), tmp_path)
    assert text == tiny_config(eos_token_id=(1, 106))
    expected = {"model_type": "gemma3n_text", "architectures": ["Gemma3nForCausalLM"], "dtype": "bfloat16"}
    assert text.published.items() >= (expected | {"an_unknown_field": 7}).items()
    assert not [name for name in text.published if "image" in name or "audio" in name or name.endswith("_config")]


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"vision": dataclasses.replace(TINY_VISION, vocab_offset=79)}, "must lie behind the text's 80"),
        ({"audio": dataclasses.replace(TINY_AUDIO, vocab_size=9)}, "and before 96"),
        ({"audio": dataclasses.replace(TINY_AUDIO, vocab_offset=86)}, "overlap"),
    ],
)
def test_ids_of_media_lie_behind_the_texts_and_apart(towers: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny_multimodal_config(), **towers)


def beginning(tower: TowerConfig, begin_id: int) -> Any:
    return dataclasses.replace(tower, tokens=dataclasses.replace(tower.tokens, begin_id=begin_id))


@pytest.mark.parametrize("begin_id", [-5, 95, 1_000_000, 0, 2, 1, 9])
def test_a_mark_that_opens_an_item_is_an_id_of_the_text_and_stands_for_nothing_else(begin_id: int) -> None:
    config = tiny_multimodal_config(eos_token_id=(1, 9))
    with pytest.raises(ConfigError, match=rf"config: boi_token_id is {begin_id}; it must be one of the text's 80 ids"):
        dataclasses.replace(config, vision=beginning(TINY_VISION, begin_id))
    with pytest.raises(ConfigError, match=rf"config: boa_token_id is {begin_id}; it must be one of the text's 80 ids"):
        dataclasses.replace(config, audio=beginning(TINY_AUDIO, begin_id))


def test_image_and_sound_do_not_open_with_the_same_mark() -> None:
    with pytest.raises(ConfigError, match=r"boa_token_id is 78; .* or for the other medium"):
        dataclasses.replace(tiny_multimodal_config(), audio=beginning(TINY_AUDIO, TINY_VISION.tokens.begin_id))
