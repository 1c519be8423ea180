# SPDX-License-Identifier: Apache-2.0
"""The config of a sub-model."""

from __future__ import annotations

import pytest

from model.config import LayerType, ModelConfig, TextConfig
from model.errors import SliceError
from model.slicing.config import slice_config, slice_text_config
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import AudioConfig

E4B = TextConfig.parse({})
E2B = TextConfig.parse({"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10})


def test_the_published_e2b_is_e4b_without_block_20_at_half_width() -> None:
    spec = SliceSpec.resolve(SliceConfig(name="e2b", skip_layers=[20, 21, 22, 23, 24], ffn_widths=[8192]), E4B)
    assert slice_text_config(E4B, spec) == E2B


def test_a_layer_keeps_its_type_wherever_it_ends_up() -> None:
    spec = SliceSpec.resolve(SliceConfig(name="uneven", skip_layers=[0, 7]), E4B)
    sliced = slice_text_config(E4B, spec)
    assert sliced.layer_types[3] is LayerType.full_attention  # layer 4 of the parent
    assert sliced.layer_types == tuple(E4B.layer_types[layer] for layer in spec.kept_layers)


def test_what_the_file_says_besides_is_carried_along() -> None:
    published = {"model_type": "gemma3n", "text_config": {}, "audio_config": {"x": 1}, "y": 2}
    parent = ModelConfig(text=E4B, audio=AudioConfig(), published=published)
    sliced = slice_config(parent, SubModel(SliceSpec.resolve(SliceConfig(name="one", skip_layers=[30]), E4B)))
    assert sliced.audio == parent.audio
    assert sliced.publish()["audio_config"]["x"] == 1
    assert sliced.publish()["y"] == 2
    assert sliced.publish()["text_config"]["num_hidden_layers"] == 34


def test_a_spec_of_another_parent_is_refused() -> None:
    with pytest.raises(SliceError, match="width 16384"):
        slice_text_config(E2B, SliceSpec("wide", tuple(range(30)), (16384,) * 30))
