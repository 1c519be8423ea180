# SPDX-License-Identifier: Apache-2.0
"""The laws of slicing for an optimizer's state: a sliced run goes on as its parent would have, trained at that spec."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import AdamW

from model.adapter.lora import AdapterConfig, PeftModel, attach, put_in, save_adapter
from model.adapter.targets import TargetSet
from model.checkpoint.names import ours
from model.errors import SliceError
from model.gemma3n import Gemma3n
from model.inputs import Outputs
from model.slicing.adapter import ADAPTER_WEIGHTS_FILE, PREFIX, slice_adapter
from model.slicing.config import slice_config
from model.slicing.cuts import place
from model.slicing.module import slice_module, take
from model.slicing.optimizer import IN_MEMORY, place_parameter, slice_optimizer
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from tests.laws.drawn import assert_same_tensors, backward_of, in_float64, scratch, specs, sub_models, weights
from tests.tiny import TINY_TEXT, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
CONFIG = tiny_multimodal_config()
INPUTS = tiny_multimodal_inputs(CONFIG, "text image audio", "audio text", padding="right")
LORA = AdapterConfig(targets=list(TargetSet), rank=3, alpha=6)


@cache
def base() -> Gemma3n:
    return tiny_model(CONFIG, dtype=torch.float64)


@cache
def with_adapter() -> PeftModel:
    torch.manual_seed(3)
    adapted = attach(tiny_model(CONFIG, dtype=torch.float64), LORA).double()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return adapted


def small_model(parent: nn.Module, sub: SubModel) -> nn.Module:
    return slice_module(cast(Gemma3n, parent), sub)


@torch.no_grad()
def small_with_adapter(parent: nn.Module, sub: SubModel) -> nn.Module:
    """The sliced base, and the part of the parent's factors that belongs to it."""
    small = attach(slice_module(base(), sub), LORA).double()
    own = {name.replace(IN_MEMORY, ""): parameter for name, parameter in small.named_parameters()}
    for name, parameter in trained(parent).items():
        if placement := place_parameter(name, sub, TINY_TEXT):
            own[placement.name].copy_(take(placement, parameter))
    return small


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in trained(model).items()}


def step(model: nn.Module, optimizer: AdamW, spec: SliceSpec | None = None) -> None:
    with in_float64():
        backward_of(model, cast(Outputs, model(INPUTS, spec=spec)).logits)
    optimizer.step()


def assert_close_states(left: Any, right: Any) -> None:
    """The same groups, and of every number the same statistics, up to the order of sums."""
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    for number, remembered in left["state"].items():
        assert remembered.keys() == right["state"][number].keys()
        for statistic, value in remembered.items():
            torch.testing.assert_close(value, right["state"][number][statistic], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("whole", "small"), [(base, small_model), (with_adapter, small_with_adapter)], ids=["weights", "adapter"]
)
@given(earlier=specs(TINY_TEXT), spec=specs(TINY_TEXT))
@settings(max_examples=3)
def test_a_step_of_the_sliced_run_is_the_parents_step_at_that_spec(
    whole: Callable[[], nn.Module],
    small: Callable[[nn.Module, SubModel], nn.Module],
    earlier: SliceSpec,
    spec: SliceSpec,
) -> None:
    parent, sub = copy.deepcopy(whole()), SubModel(spec)
    optimizer = AdamW(trained(parent).values(), lr=1e-2, weight_decay=0.1)
    step(parent, optimizer, earlier)  # layers that are skipped here are remembered nothing of
    sliced = small(parent, sub)
    own = AdamW(trained(sliced).values(), lr=1.0)
    own.load_state_dict(slice_optimizer(optimizer.state_dict(), shapes(parent), sub, TINY_TEXT))
    step(parent, optimizer, spec)
    step(sliced, own)
    assert_close_states(own.state_dict(), slice_optimizer(optimizer.state_dict(), shapes(parent), sub, TINY_TEXT))
    expected, found = weights(small(parent, sub)), weights(sliced)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12, msg=lambda told, at=name: at + told)


@cache
def remembered(whole: Callable[[], nn.Module]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The state after a step of everything there is, and the shapes of what it moved."""
    parent = copy.deepcopy(whole())
    optimizer = AdamW(trained(parent).values(), lr=1e-2, amsgrad=True)
    step(parent, optimizer)
    return optimizer.state_dict(), shapes(parent)


def names_of_weights(sub: SubModel) -> list[str]:
    """What is trained of the sliced model, in order."""
    return list(trained(Gemma3n.build(slice_config(CONFIG, sub), device="meta")))


def cut_weights(statistic: str, sub: SubModel) -> dict[str, Tensor]:
    """The sub-model's part of what is remembered of each weight."""
    placed = {name: (place(name, sub, TINY_TEXT), value) for name, value in values(base, statistic).items()}
    return {found.name: take(found, value) for found, value in placed.values() if found}


def names_of_factors(sub: SubModel) -> list[str]:
    """What is trained of the sliced base with the sliced adapter, in order."""
    small = Gemma3n.build(slice_config(CONFIG, sub), device="meta")
    with scratch() as directory:
        slice_adapter(written("exp_avg"), directory / "small", sub, CONFIG)
        adapted, _ = put_in(small, directory / "small", trainable=True)
    return [name.replace(IN_MEMORY, "") for name in trained(adapted)]


def cut_factors(statistic: str, sub: SubModel) -> dict[str, Tensor]:
    """The sub-model's part of what is remembered of each factor, by the carrier of adapters on disk."""
    with scratch() as directory:
        slice_adapter(written(statistic), directory / "small", sub, CONFIG)
        parts = load_file(directory / "small" / ADAPTER_WEIGHTS_FILE)
    return {PREFIX + ours(name.removeprefix(PREFIX)): part for name, part in parts.items()}


@cache
@torch.no_grad()
def written(statistic: str) -> Path:
    """An adapter whose factors are what is remembered of the factors."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory)
    holder, remembered_values = copy.deepcopy(with_adapter()), values(with_adapter, statistic)
    for name, parameter in trained(holder).items():
        parameter.copy_(remembered_values[name])
    save_adapter(holder, directory / "adapter")
    return directory / "adapter"


def values(whole: Callable[[], nn.Module], statistic: str) -> dict[str, Tensor]:
    state, whole_shapes = remembered(whole)
    return {name: state["state"][number][statistic] for number, name in enumerate(whole_shapes)}


@pytest.mark.parametrize(
    ("whole", "names_of", "cut"),
    [(base, names_of_weights, cut_weights), (with_adapter, names_of_factors, cut_factors)],
    ids=["weights", "adapter"],
)
@given(sub=sub_models(CONFIG))
@settings(max_examples=5)
def test_a_sliced_state_is_that_of_what_is_trained_of_the_sub_model_in_order(
    whole: Callable[[], nn.Module],
    names_of: Callable[[SubModel], list[str]],
    cut: Callable[[str, SubModel], dict[str, Tensor]],
    sub: SubModel,
) -> None:
    found, names = slice_optimizer(*remembered(whole), sub, TINY_TEXT), names_of(sub)
    assert found["param_groups"][0]["params"] == sorted(found["state"]) == list(range(len(names)))
    for statistic in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        parts = {name: found["state"][number][statistic] for number, name in enumerate(names)}
        assert_same_tensors(parts, cut(statistic, sub))


@pytest.mark.parametrize("whole", [base, with_adapter], ids=["weights", "adapter"])
@given(data=st.data())
@settings(max_examples=5)
def test_slicing_a_state_twice_is_slicing_it_once_by_the_composed_description(
    whole: Callable[[], nn.Module], data: st.DataObject
) -> None:
    state, whole_shapes = remembered(whole)
    first = data.draw(sub_models(CONFIG))
    middle = slice_config(CONFIG, first)
    second = data.draw(sub_models(middle))
    placed = {name: place_parameter(name, first, TINY_TEXT) for name in whole_shapes}
    middle_shapes = {found.name: found.shape(whole_shapes[name]) for name, found in placed.items() if found}
    twice = slice_optimizer(
        slice_optimizer(state, whole_shapes, first, TINY_TEXT), middle_shapes, second, middle.text
    )  # fmt: skip
    assert_same_states(twice, slice_optimizer(state, whole_shapes, first.then(second), TINY_TEXT))


@pytest.mark.parametrize("whole", [base, with_adapter], ids=["weights", "adapter"])
def test_the_full_spec_changes_nothing_of_a_state_and_copies_it(whole: Callable[[], nn.Module]) -> None:
    state, whole_shapes = remembered(whole)
    full = slice_optimizer(state, whole_shapes, SubModel(SliceSpec.full(TINY_TEXT)), TINY_TEXT)
    assert_same_states(full, state)
    assert len(state["state"]) == len(whole_shapes)
    for number, statistics in full["state"].items():
        assert all(value.data_ptr() != state["state"][number][name].data_ptr() for name, value in statistics.items())


def assert_same_states(left: Any, right: Any) -> None:
    """Same groups, same numbers, and bit for bit the same statistics."""
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    for number, statistics in left["state"].items():
        assert statistics.keys() == right["state"][number].keys()
        for name, value in statistics.items():
            assert torch.equal(value, right["state"][number][name]), (number, name)


NARROW = SubModel(SliceSpec("narrow", (0, 1, 2, 6, 7, 8), (10, 20, 30, 40, 48, 5)))


def test_groups_keep_their_constants_and_their_own_parameters_by_name() -> None:
    parent = copy.deepcopy(base())
    named = list(parent.named_parameters())
    optimizer = AdamW(
        [{"params": named[0::2], "lr": 0.5, "weight_decay": 0.3}, {"params": named[1::2], "lr": 0.25}], lr=1.0
    )
    step(parent, optimizer)
    state = optimizer.state_dict()
    order = [name for group in state["param_groups"] for name in group["param_names"]]
    found = slice_optimizer(state, {name: shapes(parent)[name] for name in order}, NARROW, TINY_TEXT)
    small = shapes(slice_module(parent, NARROW))
    assert [(group["lr"], group["weight_decay"]) for group in found["param_groups"]] == [(0.5, 0.3), (0.25, 0.01)]
    assert sorted(name for group in found["param_groups"] for name in group["param_names"]) == sorted(small)
    for group in found["param_groups"]:
        for number, name in zip(group["params"], group["param_names"], strict=True):
            assert found["state"][number]["exp_avg"].shape == small[name], name


def test_statistics_of_rows_and_columns_are_refused_by_name() -> None:
    parent = copy.deepcopy(base())
    optimizer = torch.optim.Adafactor(trained(parent).values())
    step(parent, cast(AdamW, optimizer))
    with pytest.raises(SliceError, match=r"'row_var' of 'model\.language_model\..*' has the shape \(\d+, 1\)"):
        slice_optimizer(optimizer.state_dict(), shapes(parent), NARROW, TINY_TEXT)


def test_a_state_of_another_model_is_refused() -> None:
    state, whole_shapes = remembered(base)
    fewer = dict(list(whole_shapes.items())[1:])
    with pytest.raises(SliceError, match=f"moves {len(whole_shapes)} parameters, but the model trains {len(fewer)};"):
        slice_optimizer(state, fewer, NARROW, TINY_TEXT)
    with pytest.raises(SliceError, match=r"'exp_avg' of 'model\.language_model"):
        slice_optimizer(state, dict.fromkeys(whole_shapes, (2, 2)), NARROW, TINY_TEXT)


def test_a_sub_model_without_anything_that_is_trained_is_refused() -> None:
    parent = copy.deepcopy(base())
    for name, parameter in parent.named_parameters():
        parameter.requires_grad_(name.startswith("model.language_model.layers.3."))
    state = AdamW(trained(parent).values()).state_dict()
    with pytest.raises(SliceError, match=r"slice 'narrow': keeps no parameter that is trained \(model.*layers\.3\."):
        slice_optimizer(state, shapes(parent), NARROW, TINY_TEXT)
