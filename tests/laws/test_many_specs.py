# SPDX-License-Identifier: Apache-2.0
"""Sub-models measured together, layers run once for those that begin alike, give what each gives alone, to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.generation.generate import generate, go_on, read
from model.generation.sampling import SamplingConfig
from model.inputs import Inputs, Read
from model.layers.kv_cache import KVCache
from model.slicing.spec import SliceSpec
from model.text.decoder import Decoder, LayerRun
from model.text.tree import Branch, tree_of
from tests.laws.drawn import specs
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

PLENTY = 1 << 40
CONFIG = tiny_config()
MODEL = tiny_model(CONFIG)
FULL = SliceSpec.full(TINY_TEXT)
SHORT = SliceSpec("short", FULL.kept_layers[:-1], FULL.ffn_widths[:-1])  # ends where the full one goes on
LATE = [SliceSpec(f"late_{width}", FULL.kept_layers, (*FULL.ffn_widths[:-1], width)) for width in (8, 16, 24)]


def alone(inputs: Inputs, wanted: Sequence[SliceSpec], model: Any = MODEL) -> list[torch.Tensor]:
    """Each by itself."""
    with torch.no_grad():
        return [model.hidden(inputs, spec)[0] for spec in wanted]


def together(
    inputs: Inputs, wanted: Sequence[SliceSpec], model: Any = MODEL, *, kept_bytes: int = PLENTY
) -> list[torch.Tensor]:
    """All in one, each exactly once."""
    found = dict(model.hidden_of_each(inputs, wanted, kept_bytes=kept_bytes))
    assert sorted(found) == list(range(len(wanted)))
    return [found[number] for number in range(len(wanted))]


@given(
    wanted=st.lists(specs(TINY_TEXT), min_size=1, max_size=6), seed=st.integers(0, 99),
    padding=st.sampled_from(["none", "left"]), kept_bytes=st.sampled_from([0, 3 * 21 * 4 * 32 * 4, 50_000, PLENTY]),
)  # fmt: skip
@settings(max_examples=25)
def test_many_sub_models_give_what_each_gives_alone(
    wanted: list[SliceSpec], seed: int, padding: str, kept_bytes: int
) -> None:
    wanted = [*wanted, *LATE, wanted[0], SHORT]  # some begin alike, one is there twice
    inputs = tiny_inputs(CONFIG, seed=seed, padding=padding)
    for one, other in zip(alone(inputs, wanted), together(inputs, wanted, kept_bytes=kept_bytes), strict=True):
        assert torch.equal(one, other)


@given(
    wanted=st.lists(specs(TINY_TEXT), min_size=1, max_size=3), seed=st.integers(0, 99),
    kept_bytes=st.sampled_from([0, 3 * 21 * 8 * 32 * 4, 80_000, PLENTY]),
)  # fmt: skip
@settings(max_examples=12)
def test_prompts_read_together_are_read_and_gone_on_with_as_by_each_alone(
    wanted: list[SliceSpec], seed: int, kept_bytes: int
) -> None:
    wanted = [*wanted, *LATE, SHORT]
    inputs = tiny_inputs(CONFIG, seed=seed, padding="left")
    sampling = SamplingConfig(max_new_tokens=2, temperature=1.0, seed=seed)
    found = 0
    for number, together in MODEL.read_each(inputs, wanted, kept_bytes=kept_bytes):
        with torch.no_grad():
            by_itself = read(MODEL, inputs, KVCache.empty(len(inputs.ids), inputs.ids.device), wanted[number])
        assert_same(together, by_itself)
        asked = {"sampling": sampling, "stop_ids": (), "spec": wanted[number]}
        steps = zip(go_on(MODEL, together, **asked), generate(MODEL, inputs, **asked), strict=True)
        assert all(torch.equal(one, other) for one, other in steps)
        found += 1
    assert found == len(wanted)


def assert_same(one: Read, other: Read) -> None:
    """To the last bit, and nothing besides."""
    assert torch.equal(one.hidden, other.hidden)
    assert torch.equal(one.cache.mask, other.cache.mask)
    assert one.cache.layers.keys() == other.cache.layers.keys()
    for layer, made in one.cache.layers.items():
        assert torch.equal(made.keys, other.cache.layers[layer].keys)
        assert torch.equal(made.values, other.cache.layers[layer].values)


def test_documents_of_one_row_are_not_gone_on_with() -> None:
    inputs = tiny_inputs(CONFIG)
    inputs = dataclasses.replace(inputs, documents=torch.zeros_like(inputs.ids))
    with pytest.raises(InputError, match="cannot be decoded step by step"):
        next(MODEL.read_each(inputs, [FULL], kept_bytes=0))


def test_media_go_through_their_towers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_multimodal_config()
    model = tiny_model(config)
    inputs = tiny_multimodal_inputs(config, "text image text")
    wanted = [FULL, SHORT, *LATE]
    expected = alone(inputs, wanted, model)
    seen, see = [], model.model.see
    monkeypatch.setattr(model.model, "see", lambda images: seen.append(1) or see(images))
    for one, other in zip(expected, together(inputs, wanted, model), strict=True):
        assert torch.equal(one, other)
    assert len(seen) == 1


def layers_run(wanted: Sequence[SliceSpec], kept_bytes: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many layers are run for all of them."""
    counted: list[int] = []
    run = Decoder.run_layers

    def counting(self: Decoder, group: Sequence[LayerRun], *others: Any) -> Any:
        counted.append(len(group))
        return run(self, group, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "run_layers", counting)
        together(tiny_inputs(CONFIG), wanted, kept_bytes=kept_bytes)
    return sum(counted)


def test_layers_that_sub_models_begin_with_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [FULL, *LATE, SHORT]
    assert layers_run(wanted, PLENTY, monkeypatch) == 8 + 4 == tree_of(wanted, TINY_TEXT).num_steps
    assert layers_run(wanted, 0, monkeypatch) == 9 + 3 * 9  # those that end sooner are on the way of the first
    assert layers_run([FULL, FULL], PLENTY, monkeypatch) == 9


def test_of_a_grid_every_stretch_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, widths = 4, (8, 48)
    grid = [
        SliceSpec(f"s{n}", FULL.kept_layers, (48,) * 5 + tuple(widths[n >> i & 1] for i in reversed(range(layers))))
        for n in range(2**layers)
    ]
    nodes = 5 + sum(2**depth for depth in range(1, layers + 1))
    assert layers_run(grid, PLENTY, monkeypatch) == nodes
    assert nodes < layers_run(grid, 60_000, monkeypatch) < layers_run(grid, 0, monkeypatch)


def test_the_first_comes_first() -> None:
    numbers = [n for n, _ in MODEL.hidden_of_each(tiny_inputs(CONFIG), [LATE[0], FULL, LATE[1]], kept_bytes=PLENTY)]
    assert numbers[0] == 0


def test_only_keys_and_values_that_are_read_later_wait() -> None:
    tree = tree_of([FULL, *LATE], TINY_TEXT)
    assert isinstance(tree, Branch)
    assert tree.reads == {TINY_TEXT.kv_producer(8)}
    assert tree_of([FULL, *LATE], TINY_TEXT, at_end=frozenset(range(3))).reads == {0, 1, 2}


def test_no_gradient_is_followed() -> None:
    assert torch.is_grad_enabled()
    for _, hidden in MODEL.hidden_of_each(tiny_inputs(CONFIG), [FULL], kept_bytes=0):
        assert torch.is_grad_enabled()  # the caller's
        assert not hidden.requires_grad
