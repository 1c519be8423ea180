# SPDX-License-Identifier: Apache-2.0
"""Counts equal the published ones, in both conventions, without loading or building anything."""

from __future__ import annotations

from math import prod

import pytest

from model.checkpoint.shapes import model_shapes, tower_shapes
from model.config import ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.slicing.count import (
    Layout,
    count_effective_parameters,
    count_parameters,
    text_shapes,
)
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import AudioConfig, Modality, VisionConfig
from tests.tiny import tiny_multimodal_config

E4B = TextConfig.parse({})
E2B = TextConfig.parse({"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10})
NARROW, WIDE = 8192, 16384


@pytest.mark.parametrize(("config", "parameters"), [(E4B, 6_835_235_568), (E2B, 4_435_182_688)])
def test_the_real_models_have_the_known_number_of_parameters(config: TextConfig, parameters: int) -> None:
    built = Gemma3n.build(ModelConfig(text=config), device="meta")
    shapes = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    assert count_parameters(shapes.items(), SubModel(SliceSpec.full(config)), config) == parameters
    assert shapes == text_shapes(config, Layout.used)


@pytest.mark.parametrize(("config", "parameters"), [(E4B, 3_980_491_248), (E2B, 1_905_495_648)])
def test_effective_parameters_of_the_published_layout_are_googles(config: TextConfig, parameters: int) -> None:
    shapes = text_shapes(config, Layout.published).items()
    assert count_effective_parameters(shapes, SubModel(SliceSpec.full(config)), config) == parameters


@pytest.mark.parametrize(
    ("skipped", "widths", "parameters"),
    [
        ([20, 21, 22, 23, 24], [NARROW] * 30, 1_905_495_648),  # E2B
        ([20, 21, 22, 23, 24], [NARROW] * 4 + [WIDE] + [NARROW] * 25, 1_955_827_296),  # E1.96B, layer-level
        ([], [NARROW] * 20 + [WIDE] * 5 + [NARROW] * 10, 2_470_541_808),  # E2.49B, block-level
        ([], [NARROW] * 10 + [WIDE] * 15 + [NARROW] * 10, 2_973_858_288),  # E2.98B, block-level
    ],
)
def test_published_slices_of_e4b_have_the_known_effective_parameters(
    skipped: list[int], widths: list[int], parameters: int
) -> None:
    sub = SubModel(SliceSpec.resolve(SliceConfig(name="published", skip_layers=skipped, ffn_widths=widths), E4B))
    assert count_effective_parameters(text_shapes(E4B, Layout.published).items(), sub, E4B) == parameters


def test_a_stored_head_is_the_token_table_and_not_counted_again() -> None:
    shapes = text_shapes(E2B, Layout.used)
    full = SubModel(SliceSpec.full(E2B))
    with_head = shapes | {"lm_head.weight": (E2B.vocab_size, E2B.hidden_size)}
    assert count_parameters(with_head.items(), full, E2B) == count_parameters(shapes.items(), full, E2B)


@pytest.mark.parametrize(("text", "parameters"), [(E4B, 7_818_517_072), (E2B, 5_418_464_192)])
def test_the_real_models_with_towers_have_the_known_number_of_parameters(text: TextConfig, parameters: int) -> None:
    config = ModelConfig(text=text, vision=VisionConfig(), audio=AudioConfig())
    shapes, full = model_shapes(config, Layout.used), SubModel(SliceSpec.full(text))
    assert count_parameters(shapes.items(), full, text) == parameters
    effective = count_effective_parameters(text_shapes(text, Layout.used).items(), full, text)
    assert count_effective_parameters(shapes.items(), full, text) == effective


@pytest.mark.parametrize(
    ("part", "parameters"),
    [
        ("vision_tower", 294_126_912),
        ("audio_tower", 681_348_640),
        ("embed_vision", 4_460_544),
        ("embed_audio", 3_345_408),
    ],
)
def test_the_parts_beside_the_decoder_have_the_known_number_of_parameters(part: str, parameters: int) -> None:
    shapes = tower_shapes(ModelConfig(text=E2B, vision=VisionConfig(), audio=AudioConfig()))
    assert sum(prod(shape) for name, shape in shapes.items() if name.startswith(f"model.{part}.")) == parameters


@pytest.mark.parametrize("modalities", [[], [Modality.vision], [Modality.audio], list(Modality)])
def test_names_and_shapes_are_those_of_the_built_model(modalities: list[Modality]) -> None:
    config = tiny_multimodal_config().only(modalities)
    built = Gemma3n.build(config, device="meta")
    assert model_shapes(config, Layout.used) == {name: tuple(p.shape) for name, p in built.named_parameters()}
    assert built.state_dict().keys() == model_shapes(config, Layout.used).keys()  # nothing else is saved


def test_towers_count_but_are_not_effective() -> None:
    full, tower = SubModel(SliceSpec.full(E2B)), {"model.embed_audio.embedding.weight": (128, 1536)}
    assert count_parameters(tower.items(), full, E2B) == 128 * 1536
    assert count_effective_parameters(tower.items(), full, E2B) == 0
