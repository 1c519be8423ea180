# SPDX-License-Identifier: Apache-2.0
"""What optimizers remember: kept in a file bit for bit, found again by name, and cut with the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.adapter.lora import AdapterConfig, PeftModel, attach
from model.adapter.targets import TargetSet
from model.errors import CheckpointError, SliceError
from model.slicing.module import slice_module, take
from model.slicing.optimizer import place_parameter, slice_optimizer
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT, tiny_model
from tests.trainer.optimizers.gradients import (
    assert_same_memory,
    remembered_by_name,
    take_steps,
    through_a_file,
    trained,
)
from trainer.optim import build_optimizer
from trainer.optimizers.config import GroupConfig, OptimConfig, OptimizerName

NAMES = [name for name in OptimizerName if name is not OptimizerName.adamw_8bit]
NARROW = SubModel(SliceSpec("narrow", (0, 1, 2, 6, 7, 8), (10, 20, 30, 40, 48, 5)))


def adapted() -> PeftModel:
    torch.manual_seed(0)
    return attach(tiny_model(), AdapterConfig(targets=[TargetSet.all_linear], rank=2, alpha=4))


def config(name: OptimizerName, **changes: Any) -> OptimConfig:
    groups = [GroupConfig(match=r"layers\.[12]\.", learning_rate_scale=0.5)]
    values: dict[str, Any] = {"learning_rate": 1e-2, "name": name, "weight_decay": 0.1, "groups": groups} | changes
    return OptimConfig(**values)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained(model).items()}


def assert_goes_on_bit_for_bit(model: nn.Module, settings: OptimConfig) -> None:
    """Four steps, and two, a file, a new optimizer and two more."""
    resumed = copy.deepcopy(model)
    whole, first = build_optimizer(model, settings), build_optimizer(resumed, settings)
    take_steps(model, whole, *range(4))
    take_steps(resumed, first, *range(2))
    second = build_optimizer(resumed, settings)
    second.load_state_dict(through_a_file(first.state_dict()))
    take_steps(resumed, second, *range(2, 4))
    left, right = weights(model), weights(resumed)
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    assert_same_memory(remembered_by_name(whole), remembered_by_name(second))
    assert whole.state_dict()["param_groups"] == second.state_dict()["param_groups"]


@pytest.mark.parametrize("name", NAMES)
def test_an_adapters_optimizer_goes_on_from_a_file_bit_for_bit(name: OptimizerName) -> None:
    assert_goes_on_bit_for_bit(adapted(), config(name, lora_plus_ratio=4.0))


@pytest.mark.parametrize("name", NAMES)
def test_a_models_optimizer_goes_on_from_a_file_bit_for_bit(name: OptimizerName) -> None:
    assert_goes_on_bit_for_bit(tiny_model(), config(name))


def test_torchs_plain_loops_go_on_bit_for_bit() -> None:
    assert_goes_on_bit_for_bit(tiny_model(), config(OptimizerName.adamw, fused=False))


def test_bfloat16_weights_go_on_bit_for_bit() -> None:
    assert_goes_on_bit_for_bit(tiny_model(dtype=torch.bfloat16), config(OptimizerName.adamw_bf16_states))


@pytest.mark.gpu
def test_8_bits_go_on_bit_for_bit() -> None:
    pytest.importorskip("bitsandbytes")
    assert_goes_on_bit_for_bit(tiny_model().cuda(), config(OptimizerName.adamw_8bit))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_finds_its_parameters_in_other_groups_and_constants_are_the_configs(name: OptimizerName) -> None:
    model = adapted()
    first = build_optimizer(model, config(name))
    take_steps(model, first, 0, 1)
    other = config(
        name, groups=[GroupConfig(match="lora_A", weight_decay=0.5), GroupConfig(match="v_proj", weight_decay=0.0)]
    )
    second = build_optimizer(model, other)
    constants = [{k: v for k, v in group.items() if k != "params"} for group in second.state_dict()["param_groups"]]
    second.load_state_dict(through_a_file(first.state_dict()))
    assert_same_memory(remembered_by_name(first), remembered_by_name(second))
    assert [
        {k: group[k] for k in before}
        for group, before in zip(second.state_dict()["param_groups"], constants, strict=True)
    ] == constants


def test_what_was_never_moved_is_remembered_nothing_of() -> None:
    model = adapted()
    first = build_optimizer(model, config(OptimizerName.adamw_bf16_states))
    take_steps(model, first, 0)
    name, parameter = next(iter(trained(model).items()))
    del first.state[parameter]
    second = build_optimizer(model, config(OptimizerName.adamw_bf16_states))
    second.load_state_dict(through_a_file(first.state_dict()))
    assert [name for name, found in remembered_by_name(second).items() if not found] == [name]


def test_a_state_without_names_is_in_the_optimizers_order() -> None:
    model = adapted()
    first, second = (build_optimizer(model, config(OptimizerName.adamw)) for _ in range(2))
    take_steps(model, first, 0)
    state = first.state_dict()
    for group in state["param_groups"]:
        del group["param_names"]
    second.load_state_dict(state)
    assert_same_memory(remembered_by_name(first), remembered_by_name(second))


def test_a_state_of_other_parameters_is_refused_by_name() -> None:
    model = adapted()
    state = build_optimizer(model, config(OptimizerName.adamw)).state_dict()
    removed = next(name for name in trained(model) if "layers.0." in name)
    dict(model.named_parameters())[removed].requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"alone: model\.language_model\.layers\.0\..*lora_A\.weight; go on with"):
        build_optimizer(model, config(OptimizerName.adamw)).load_state_dict(state)


@pytest.mark.parametrize("name", [OptimizerName.adamw, OptimizerName.adamw_bf16_states])
@pytest.mark.parametrize("match", [r"layers\.[12]\.", "q_proj"])
def test_a_sliced_state_goes_to_the_sub_models_parameters_by_name(name: OptimizerName, match: str) -> None:
    # Layer 6 becomes layer 3, so that another group may be right for what it has.
    settings = config(name, groups=[GroupConfig(match=match, learning_rate_scale=0.5)])
    parent = tiny_model()
    optimizer = build_optimizer(parent, settings)
    take_steps(parent, optimizer, 0, 1)
    shapes = {name: tuple(parameter.shape) for name, parameter in trained(parent).items()}
    sliced = slice_optimizer(through_a_file(optimizer.state_dict()), shapes, NARROW, TINY_TEXT)
    own = build_optimizer(slice_module(parent, NARROW), settings)
    own.load_state_dict(through_a_file(sliced))
    expected: dict[str, dict[str, Any]] = {}
    for parameter, remembered in remembered_by_name(optimizer).items():
        if placement := place_parameter(parameter, NARROW, TINY_TEXT):
            expected[placement.name] = {
                statistic: take(placement, value) if value.ndim else value for statistic, value in remembered.items()
            }
    assert_same_memory(remembered_by_name(own), expected)


def test_adafactors_statistics_are_not_cut() -> None:
    parent = tiny_model()
    optimizer = build_optimizer(parent, config(OptimizerName.adafactor))
    take_steps(parent, optimizer, 0)
    shapes = {name: tuple(parameter.shape) for name, parameter in trained(parent).items()}
    with pytest.raises(SliceError, match=r"optimizer's '\w+_var' of 'model\..*can be cut with it: finish the run"):
        slice_optimizer(optimizer.state_dict(), shapes, NARROW, TINY_TEXT)


def test_moments_in_8_bits_are_not_cut() -> None:
    parent = tiny_model()
    optimizer = build_optimizer(parent, config(OptimizerName.adamw))
    take_steps(parent, optimizer, 0)
    state = optimizer.state_dict()
    state["state"][0] = {"step": 1, "quantized": {"state1": torch.zeros(3, dtype=torch.uint8)}}
    shapes = {name: tuple(parameter.shape) for name, parameter in trained(parent).items()}
    with pytest.raises(SliceError, match=r"'quantized' of 'model\..*holds several things.*finish the run"):
        slice_optimizer(state, shapes, NARROW, TINY_TEXT)
