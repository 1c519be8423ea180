# SPDX-License-Identifier: Apache-2.0
"""Google's sub-models are themselves in E4B, and in other models what is like them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from model.config import LayerType, TextConfig
from model.slicing.official import LAYERS, counterparts, official
from model.slicing.spec import SliceSpec
from model.slicing.table import published_slices
from model.slicing.trained import narrow_width, optional_block
from tests.tiny import TINY_TEXT

E4B_TYPES = ((LayerType.sliding_attention,) * 4 + (LayerType.full_attention,)) * 7
E4B = dataclasses.replace(
    TINY_TEXT, hidden_size=2048, vocab_size=262_400, layer_types=E4B_TYPES, intermediate_size=(16384,) * LAYERS,
    num_kv_shared_layers=15, activation_sparsity_pattern=(0.95,) * 10 + (0.0,) * 25,
)  # fmt: skip
TINY_15 = dataclasses.replace(
    TINY_TEXT, layer_types=E4B_TYPES[:15], intermediate_size=(256,) * 15, num_kv_shared_layers=10,
    activation_sparsity_pattern=(0.0,) * 15,
)  # fmt: skip
E2B = dataclasses.replace(
    E4B, layer_types=E4B_TYPES[:30], intermediate_size=(8192,) * 30, num_kv_shared_layers=10,
    activation_sparsity_pattern=(0.0,) * 30,
)  # fmt: skip


def test_in_e4b_they_are_those_of_the_table() -> None:
    found = official(E4B)
    assert len(found) == 16
    for one, written in zip(found, published_slices().values(), strict=True):
        expected = SliceSpec.resolve(dataclasses.replace(written, name=one.spec.name), E4B)
        assert one.spec == expected
        assert one.is_itself
    assert counterparts(E4B) == list(range(LAYERS))
    assert (found[0].name, found[0].accuracy) == ("Main model", 0.623)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64}, {"intermediate_size": (256,) * LAYERS}, {"vocab_size": 512}, {"num_kv_shared_layers": 10},
        {"intermediate_size": (16384,) * 34 + (8192,)},
    ],
)  # fmt: skip
def test_a_model_of_35_layers_is_not_e4b_for_that_alone(changes: dict[str, Any]) -> None:
    found = official(dataclasses.replace(E4B, **changes))
    assert len(found) == 16
    assert not any(one.is_itself for one in found)


def test_with_an_adapter_it_is_no_longer_what_was_published() -> None:
    assert not any(one.is_itself for one in official(E4B, tuned=True))
    assert [one.spec for one in official(E4B, tuned=True)] == [one.spec for one in official(E4B)]


@pytest.mark.parametrize("config", [TINY_TEXT, TINY_15, E2B], ids=["9 layers", "15 layers", "E2B"])
def test_in_other_models_they_are_legal_parts_in_the_same_order_of_size(config: TextConfig) -> None:
    found = {one.spec.name: one.spec for one in official(config)}
    assert len(found) == 16
    for spec in found.values():
        spec.check(config)
    full = found["main"]
    assert full.is_full(config)
    widths = [
        sum(found[f"e{size}_block"].ffn_widths) for size in ("2_49b", "2_73b", "2_98b", "3_24b", "3_49b", "3_79b")
    ]
    assert widths == sorted(widths)
    assert not any(one.is_itself for one in official(config))


@pytest.mark.parametrize("config", [TINY_TEXT, TINY_15], ids=["9 layers", "15 layers"])
def test_what_they_leave_out_is_the_optional_block(config: TextConfig) -> None:
    found = {one.spec.name: one.spec for one in official(config)}
    optional = optional_block(config)
    assert optional
    kept = tuple(layer for layer in range(config.num_hidden_layers) if layer not in optional)
    assert found["e2b"].kept_layers == kept
    assert found["e2b"].ffn_widths == tuple(narrow_width(config, layer) for layer in kept)
