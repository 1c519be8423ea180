# SPDX-License-Identifier: Apache-2.0
"""Sets of modules to adapt."""

from __future__ import annotations

import re

import pytest
from torch import nn

from model.adapter.targets import TargetSet, resolve_targets, travelling_name
from model.errors import ConfigError
from tests.tiny import TINY_TEXT, tiny_model

LAYERS = TINY_TEXT.num_hidden_layers


def leaves(*sets: TargetSet) -> dict[str, int]:
    """How often each module name within a layer (or outside of them) is in these sets."""
    counts: dict[str, int] = {}
    for path in resolve_targets(tiny_model(), sets):
        leaf = re.sub(r"^model\.language_model\.(layers\.\d+\.)?", "", path)
        counts[leaf] = counts.get(leaf, 0) + 1
    return counts


def test_attention_is_four_projections_of_which_readers_have_two() -> None:
    producers = TINY_TEXT.first_shared_layer
    assert leaves(TargetSet.attention) == {
        "self_attn.q_proj": LAYERS,
        "self_attn.k_proj": producers,
        "self_attn.v_proj": producers,
        "self_attn.o_proj": LAYERS,
    }


def test_ffn_is_gate_up_and_down() -> None:
    assert leaves(TargetSet.ffn) == {"mlp.gate_proj": LAYERS, "mlp.up_proj": LAYERS, "mlp.down_proj": LAYERS}


def test_all_linear_is_attention_and_ffn() -> None:
    assert leaves(TargetSet.all_linear) == leaves(TargetSet.attention) | leaves(TargetSet.ffn)


def test_per_layer_is_what_the_per_layer_embeddings_pass_through() -> None:
    assert leaves(TargetSet.per_layer) == {
        "per_layer_input_gate": LAYERS,
        "per_layer_projection": LAYERS,
        "per_layer_model_projection": 1,
    }


def test_sets_that_overlap_name_a_module_once() -> None:
    assert leaves(TargetSet.all_linear, TargetSet.ffn) == leaves(TargetSet.all_linear)


def test_altup_is_in_no_set() -> None:
    assert not [path for path in resolve_targets(tiny_model(), list(TargetSet)) if "altup" in path or "laurel" in path]


def test_a_set_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'ffn' matches no module of Linear"):
        resolve_targets(nn.Linear(2, 2), [TargetSet.ffn])


def test_no_set_at_all_is_an_error_that_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="attention, ffn, all_linear, per_layer"):
        resolve_targets(tiny_model(), [])


@pytest.mark.parametrize("base", ["model.language_model.", "model."])
def test_a_travelling_name_is_the_end_of_the_path_in_every_layout(base: str) -> None:
    assert travelling_name(f"{base}layers.1.mlp.up_proj") == "layers.1.mlp.up_proj"
