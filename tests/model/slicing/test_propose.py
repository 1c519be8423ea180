# SPDX-License-Identifier: Apache-2.0
"""What is proposed is the closest under the budget that the rule admits; brute force agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig, TextConfig
from model.errors import ConfigError, SliceError
from model.slicing.config import slice_config
from model.slicing.plan import Plan, StoredAs
from model.slicing.propose import Budget, propose
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.trained import widening_order
from model.tower_config import AudioConfig, Modality, VisionConfig
from tests.tiny import GLOBAL, LOCAL, TINY_TEXT, tiny_multimodal_config

E4B = ModelConfig(text=TextConfig.parse({}), vision=VisionConfig(), audio=AudioConfig())
NARROW, WIDE = 8192, 16_384
HALF_A_LAYER = 3 * 2048 * NARROW
SMALLEST, LARGEST = 1_278_719_808, 3_980_491_248  # effective parameters
E2B_LAYERS = [*range(20), *range(25, 35)]

# Four blocks of three: two of producers, then the one that may be skipped, then one more of readers. Widths
# differ, so that it matters which layers are widened.
WIDTHS = (48, 40, 44, 30, 48, 46, 48, 41, 48, 47, 20, 33)
SMALL = tiny_multimodal_config(
    layer_types=(LOCAL, LOCAL, GLOBAL) * 4,
    intermediate_size=WIDTHS,
    activation_sparsity_pattern=(0.9,) * 2 + (0.0,) * 10,
    num_kv_shared_layers=6,
)
DEPTHS = (tuple(range(12)), (0, 1, 2, 3, 4, 5, 9, 10, 11), (0, 1, 2, 3, 4, 5))
GROUPS = ((2, 5, 11), (3, 4), (9, 10), (0, 1))  # each widened after those before it
BUDGETS = (
    Budget(max_effective=0, context_tokens=40),
    Budget(max_bytes=0, context_tokens=40),
    Budget(max_bytes=0, context_tokens=40, dtype=StoredAs.int8, cache_dtype=StoredAs.int8),
)


def choices(layer: int) -> Sequence[int]:
    """The trained widths of a layer of SMALL: its own, and 24 if that is less; the optional block's own alone."""
    return [WIDTHS[layer]] if layer in (6, 7, 8) or WIDTHS[layer] <= 24 else [24, WIDTHS[layer]]


def admitted(widths: dict[int, int]) -> bool:
    """Whether a layer is wide only if all layers of all groups before its own are."""
    for position, group in enumerate(GROUPS):
        wider = any(widths.get(layer, 0) > 24 for later in GROUPS[position + 1 :] for layer in later)
        if wider and any(widths[layer] < WIDTHS[layer] for layer in group if layer in widths):
            return False
    return True


def every_spec() -> Iterator[SliceSpec]:
    """All that have trained widths and a depth of DEPTHS."""
    for kept in DEPTHS:
        for widths in product(*map(choices, kept)):
            if admitted(dict(zip(kept, widths, strict=True))):
                yield SliceSpec("any", kept, widths)


@cache
def plans() -> dict[SliceSpec, Plan]:
    """Of every spec that the rule admits, what it costs."""
    return {spec: Plan.of(SMALL, SubModel(spec), context_tokens=40) for spec in every_spec()}


def sizes(budget: Budget) -> dict[SliceSpec, int]:
    """Of every spec that the rule admits, what the budget limits, by the plan of it."""
    if budget.max_effective is not None:
        return {spec: plan.published.effective for spec, plan in plans().items()}
    stored = budget.cache_dtype or StoredAs.bf16
    return {spec: plan.weight_bytes[budget.dtype] + plan.cache_bytes[stored] for spec, plan in plans().items()}


def limited(budget: Budget, limit: int) -> Budget:
    key = "max_effective" if budget.max_effective is not None else "max_bytes"
    return dataclasses.replace(budget, **{key: limit})


@pytest.mark.parametrize(
    "budget",
    [
        pytest.param(BUDGETS[0], id="effective", marks=pytest.mark.slow),
        pytest.param(BUDGETS[1], id="bytes", marks=pytest.mark.slow),
        pytest.param(BUDGETS[2], id="int8"),
    ],
)
def test_no_admitted_spec_comes_closer_under_the_budget(budget: Budget) -> None:
    known = sizes(budget)
    assert len(set(known.values())) == 40
    for limit in sorted({size + more for size in known.values() for more in (-1, 0)} - {min(known.values()) - 1}):
        fitting = {spec: size for spec, size in known.items() if size <= limit}
        deepest = max(len(spec.kept_layers) for spec in fitting)
        expected = max(size for spec, size in fitting.items() if len(spec.kept_layers) == deepest)
        found = dataclasses.replace(propose(SMALL, limited(budget, limit)), name="any")
        assert known[found] == expected, limit


def wide_layers(spec: SliceSpec) -> list[int]:
    return [layer for layer, width in zip(spec.kept_layers, spec.ffn_widths, strict=True) if width == WIDE]


@pytest.mark.parametrize(
    ("effective", "kept", "wide"),
    [
        (1_905_495_648, E2B_LAYERS, []),
        (1_955_827_296, E2B_LAYERS, [4]),
        (2_470_541_808, range(35), range(20, 25)),
        (2_520_873_456, range(35), [4, *range(20, 25)]),
        (2_671_868_400, range(35), [4, 9, 14, *range(19, 25)]),
        (3_175_184_880, range(35), [4, *range(9, 25), 29, 34]),
        (3_376_511_472, range(35), [4, *range(9, 30), 34]),
        (3_577_838_064, range(35), [*range(4, 30), 34]),
        (3_779_164_656, range(35), range(4, 35)),
        (3_980_491_248, range(35), range(35)),
    ],
)
def test_the_sizes_of_googles_table_give_the_layers_of_googles_table(
    effective: int, kept: Sequence[int], wide: Sequence[int]
) -> None:
    spec = propose(E4B, Budget(max_effective=effective))
    assert (list(spec.kept_layers), wide_layers(spec)) == (list(kept), list(wide))
    assert Plan.of(E4B, SubModel(spec), context_tokens=1).published.effective == effective


@given(limit=st.integers(SMALLEST, LARGEST))
@settings(max_examples=12, deadline=None)
def test_any_budget_of_e4b_is_met_to_less_than_half_a_layer(limit: int) -> None:
    spec = propose(E4B, Budget(max_effective=limit))
    spec.check(E4B.text)
    assert set(spec.ffn_widths) <= {NARROW, WIDE}
    assert set(range(20)) <= set(spec.kept_layers)  # producers
    assert {20, 21, 22, 23, 24}.isdisjoint(set(spec.kept_layers) - set(wide_layers(spec)))
    assert 0 <= limit - Budget().size(E4B, spec).effective < HALF_A_LAYER


def test_layers_of_e4b_are_widened_in_googles_order() -> None:
    blocks = ((15, 16, 17, 18), (10, 11, 12, 13), (25, 26, 27, 28), (5, 6, 7, 8), (30, 31, 32, 33), (0, 1, 2, 3))
    assert widening_order(E4B.text) == [(4, 9, 14, 19, 29, 34), *blocks]
    e2b = slice_config(E4B, SubModel(SliceSpec("e2b", tuple(E2B_LAYERS), (NARROW,) * 30)))
    assert [tuple(E2B_LAYERS[layer] for layer in group) for group in widening_order(e2b.text)] == widening_order(
        E4B.text
    )


@pytest.mark.parametrize("limit", [SMALLEST, 1_700_000_000, 2_000_000_000, 2_470_541_807])
def test_a_slice_without_the_optional_block_is_planned_like_its_parent(limit: int) -> None:
    first = SliceSpec("first", tuple(E2B_LAYERS), (WIDE,) * 30)
    second = propose(slice_config(E4B, SubModel(first)), Budget(max_effective=limit))
    assert first.then(second) == propose(E4B, Budget(max_effective=limit))


def test_widths_of_a_slice_that_were_never_trained_smaller_stay() -> None:
    e2b = slice_config(E4B, SubModel(SliceSpec("e2b", tuple(E2B_LAYERS), (NARROW,) * 30)))
    spec = propose(e2b, Budget(max_effective=1_800_000_000))
    assert spec == SliceSpec("e1_59b", tuple(range(25)), (NARROW,) * 25)


def test_below_e2b_readers_are_left_out_from_the_end() -> None:
    spec = propose(E4B, Budget(max_effective=1_600_000_000))
    assert spec == SliceSpec("e1_59b", (*range(20), *range(25, 30)), (NARROW,) * 25)
    assert propose(E4B, Budget(max_effective=SMALLEST)) == SliceSpec("e1_28b", tuple(range(20)), (NARROW,) * 20)


def test_an_impossible_number_of_parameters_is_refused_by_naming_the_smallest() -> None:
    with pytest.raises(SliceError, match=r"max_effective=1,278,719,807: the smallest keeps layers 0-19, each at width"
                       r" 8192, and has 1,278,719,808 effective parameters"):  # fmt: skip
        propose(E4B, Budget(max_effective=SMALLEST - 1))


def test_an_impossible_number_of_bytes_is_refused_by_naming_the_smallest_and_what_would_help() -> None:
    budget = Budget(max_bytes=1_000_000_000, context_tokens=8192)
    smallest = propose(E4B, Budget(max_effective=SMALLEST))
    plan = Plan.of(E4B, SubModel(smallest), context_tokens=8192)
    least = plan.weight_bytes[StoredAs.bf16] + plan.cache_bytes[StoredAs.bf16]
    with pytest.raises(SliceError, match=f"{least:,} bytes .* of 8,192 tokens.*dtype=int4.*modalities="):
        propose(E4B, budget)
    assert propose(E4B, dataclasses.replace(budget, max_bytes=least)) == smallest
    with pytest.raises(SliceError, match=r"^(?!.*modalities=)"):
        propose(E4B.only([Modality.text]), budget)


def test_both_limits_hold() -> None:
    both = Budget(max_effective=2_200_000_000, max_bytes=10_950_000_000)
    size = both.size(E4B, propose(E4B, both))
    assert size.num_bytes <= 10_950_000_000
    assert 2_200_000_000 - size.effective > HALF_A_LAYER  # the bytes are the tighter limit, and met
    assert 10_950_000_000 - size.num_bytes < 2 * HALF_A_LAYER
    fewer = dataclasses.replace(both, max_effective=1_920_000_000)
    assert fewer.size(E4B, propose(E4B, fewer)).effective == 1_905_495_648


def test_a_budget_without_a_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_effective .* or max_bytes"):
        propose(E4B, Budget(context_tokens=8192))


def test_without_readers_only_widths_are_chosen() -> None:
    text = dataclasses.replace(TINY_TEXT, num_kv_shared_layers=0)
    config = ModelConfig(text=text)
    smallest = propose(config, Budget(max_effective=Budget().size(config, narrow(text)).effective))
    assert (smallest.kept_layers, smallest.ffn_widths) == (tuple(range(9)), (24,) * 9)


def narrow(text: TextConfig) -> SliceSpec:
    return SliceSpec("narrow", tuple(range(text.num_hidden_layers)), (24,) * text.num_hidden_layers)
