# SPDX-License-Identifier: Apache-2.0
"""The table of cuts names every tensor of Gemma 3n, each once, and nothing else."""

from __future__ import annotations

import re

import pytest
import torch

from model.config import TextConfig
from model.errors import SliceError
from model.slicing.count import Layout, text_shapes
from model.slicing.cuts import CUTS, WHOLE, WHOLE_PREFIXES, Kept, Placement, place
from model.slicing.module import take
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel

E4B = TextConfig.parse({})
E2B_SPEC = SliceSpec.resolve(SliceConfig(name="e2b", skip_layers=[20, 21, 22, 23, 24], ffn_widths=[8192]), E4B)
NAMES = [
    *text_shapes(E4B, Layout.published),
    "lm_head.weight",
    "model.vision_tower.timm_model.conv_stem.conv.weight",
    "model.audio_tower.conformer.0.norm.weight",
    "model.embed_vision.embedding.weight",
    "model.embed_audio.soft_embedding_norm.weight",
]


def rows_matching(name: str) -> list[str]:
    """Rows whose pattern, read as an expression, names this tensor: another reading than ``place``'s."""
    number = r"(0|[1-9][0-9]*)"
    patterns = {row: re.escape(row) for row in [cut.pattern for cut in CUTS] + list(WHOLE)}
    matching = [
        row
        for row, pattern in patterns.items()
        if re.fullmatch(pattern.replace(r"\{layer\}", number).replace(r"\{stream\}", number), name)
    ]
    return matching + [prefix for prefix in WHOLE_PREFIXES if name.startswith(prefix)]


def test_every_tensor_is_in_exactly_one_row() -> None:
    assert {name: len(rows_matching(name)) for name in NAMES} == dict.fromkeys(NAMES, 1)


def test_every_row_names_a_tensor() -> None:
    used = {row for name in NAMES for row in rows_matching(name)}
    assert used == {cut.pattern for cut in CUTS} | set(WHOLE) | set(WHOLE_PREFIXES)


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.3.self_attn.extra.weight",
        "model.language_model.layers.3.mlp.gate_proj.bias",
        "model.language_model.layers.3.mlp.gate_proj.base_layer.weight",
        "model.language_model.layers.03.input_layernorm.weight",
        "model.language_model.layers.input_layernorm.weight",
        "model.language_model.layers.{layer}.input_layernorm.weight",
        "model.language_model.altup_projections.weight",
        "model.language_model.new.weight",
        "model.layers.3.input_layernorm.weight",
        "lm_head.bias",
    ],
)
def test_an_unknown_tensor_is_an_error_that_names_it_and_the_table(name: str) -> None:
    with pytest.raises(SliceError, match=rf"'{re.escape(name)}' is in no row of model/slicing/cuts.py"):
        place(name, SubModel(E2B_SPEC), E4B)


def test_a_tensor_of_a_layer_beyond_the_parents_last_is_an_error() -> None:
    with pytest.raises(SliceError, match="layers 0 to 34"):
        place("model.language_model.layers.35.input_layernorm.weight", SubModel(E2B_SPEC), E4B)


def test_a_kept_layer_is_renumbered_and_a_skipped_one_dropped() -> None:
    kept = place("model.language_model.layers.25.input_layernorm.weight", SubModel(E2B_SPEC), E4B)
    assert kept == Placement("model.language_model.layers.20.input_layernorm.weight")
    assert place("model.language_model.layers.24.input_layernorm.weight", SubModel(E2B_SPEC), E4B) is None


def test_feed_forward_keeps_leading_rows_of_gate_and_up_and_columns_of_down() -> None:
    layer = "model.language_model.layers.0.mlp"
    for leaf, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        name = f"{layer}.{leaf}.weight"
        assert place(name, SubModel(E2B_SPEC), E4B) == Placement(name, (Kept(axis, (range(8192),)),))


def test_per_layer_tables_keep_one_block_per_kept_layer_in_as_few_reads_as_possible() -> None:
    placement = place("model.language_model.embed_tokens_per_layer.weight", SubModel(E2B_SPEC), E4B)
    assert placement is not None
    assert placement.kept == (Kept(1, (range(20 * 256), range(25 * 256, 35 * 256))),)
    assert placement.shape((262_144, 35 * 256)) == (262_144, 30 * 256)


def test_altup_projections_are_not_taken_for_layers() -> None:
    name = "model.language_model.altup_projections.2.weight"
    only_first = SliceSpec("first", (0,), (8192,))
    assert place(name, SubModel(only_first), E4B) == Placement(name)


def test_a_part_has_the_shape_that_was_foretold() -> None:
    placement = Placement("name", (Kept(1, (range(2), range(4, 7))),))
    tensor = torch.arange(24).view(3, 8)
    assert take(placement, tensor).tolist() == tensor[:, [0, 1, 4, 5, 6]].tolist()
    assert placement.shape((3, 8)) == (3, 5)
