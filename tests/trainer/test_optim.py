# SPDX-License-Identifier: Apache-2.0
"""The optimizer moves what is trained, and nothing else; each is the one its name says."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from model.errors import ConfigError
from tests.trainer.optimizers.gradients import give_gradients
from trainer import optim
from trainer.optim import build_optimizer, refuse_absent
from trainer.optimizers.config import OptimConfig, OptimizerName

STEPS, RATE, DECAY = 4, 1e-2, 0.1


def test_only_parameters_that_require_a_gradient_are_in_the_optimizer() -> None:
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    groups = build_optimizer(model, OptimConfig(learning_rate=1e-3)).param_groups
    assert [parameter is model.bias for group in groups for parameter in group["params"]] == [True]


@pytest.mark.parametrize("name", [name for name in OptimizerName if name is not OptimizerName.adamw_8bit])
def test_without_weight_decay_a_neuron_never_used_never_moves(name: OptimizerName) -> None:
    model = nn.Linear(3, 4, bias=False)
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.1, name=name))
    before = model.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 3))[:, :2].sum().backward()
        optimizer.step()
    moved = (model.weight.detach() != before).any(dim=1)
    assert moved.tolist() == [True, True, False, False]


@torch.no_grad()
def adamw_in_float64(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """The algorithm as it is printed: decay, moments, their correction, step."""
    moved, first, second = weight.double(), torch.zeros(()), torch.zeros(())
    for step, gradient in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * gradient.double(), 0.999 * second + 0.001 * gradient.double() ** 2
        corrected = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        moved = moved - RATE * DECAY * moved - RATE * corrected
    return moved


@torch.no_grad()
def adafactor_in_float64(weight: Tensor, gradients: list[Tensor]) -> Tensor:
    """The paper's algorithm 4 for a matrix; the decay of averages is 1 - step ** -0.8."""
    moved, rows, columns = weight.double(), torch.zeros(()), torch.zeros(())
    for step, gradient in enumerate(gradients, start=1):
        kept, square = 1 - step**-0.8, gradient.double() ** 2
        rows = kept * rows + (1 - kept) * square.mean(dim=1, keepdim=True)
        columns = kept * columns + (1 - kept) * square.mean(dim=0, keepdim=True)
        change = gradient.double() / (rows @ columns / rows.mean()).sqrt()
        change = change / max(1.0, change.square().mean().sqrt().item())
        size = max(1e-3, moved.square().mean().sqrt().item())
        moved = moved - RATE * DECAY * moved - size * min(RATE, step**-0.5) * change
    return moved


@pytest.mark.parametrize(
    ("changes", "reference"),
    [
        ({}, adamw_in_float64),
        ({"fused": False}, adamw_in_float64),
        ({"name": OptimizerName.adafactor}, adafactor_in_float64),
    ],
    ids=["fused", "loops", "adafactor"],
)
def test_a_matrix_moves_as_the_paper_says(changes: dict[str, Any], reference: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 5, bias=False)
    before, gradients = model.weight.detach().clone(), []
    optimizer = build_optimizer(model, OptimConfig(**dict[str, Any](learning_rate=RATE, weight_decay=DECAY) | changes))
    for step in range(STEPS):
        give_gradients(dict(model.named_parameters()), step)
        assert model.weight.grad is not None
        gradients.append(model.weight.grad.clone())
        optimizer.step()
    found = (model.weight.detach() - before).double()
    torch.testing.assert_close(found, reference(before, gradients) - before, rtol=1e-4, atol=1e-8)  # in float32


def test_adafactor_remembers_rows_and_columns_only() -> None:
    model = nn.Linear(50, 40, bias=False)
    optimizer = build_optimizer(model, OptimConfig(learning_rate=RATE, name=OptimizerName.adafactor))
    give_gradients(dict(model.named_parameters()), 0)
    optimizer.step()
    assert sum(value.numel() for value in optimizer.state[model.weight].values()) == 50 + 40 + 1


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter requires a gradient"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig(learning_rate=1e-3))


@pytest.mark.parametrize("name", [OptimizerName.adamw, OptimizerName.adafactor])
def test_training_bfloat16_weights_is_refused_where_small_steps_would_be_lost(name: OptimizerName) -> None:
    with pytest.raises(ConfigError, match=r"'weight' is trained but is torch\.bfloat16.*fp32, or optim=adamw_bf16_st"):
        build_optimizer(nn.Linear(2, 2, dtype=torch.bfloat16), OptimConfig(learning_rate=1e-3, name=name))


def test_float16_weights_are_refused_by_all() -> None:
    config = OptimConfig(learning_rate=1e-3, name=OptimizerName.adamw_bf16_states)
    with pytest.raises(ConfigError, match=r"'weight' is trained but is torch\.float16"):
        build_optimizer(nn.Linear(2, 2, dtype=torch.float16), config)


EIGHT_BITS = OptimConfig(learning_rate=1e-3, name=OptimizerName.adamw_8bit)


def test_8_bits_without_their_package_are_refused() -> None:
    with (
        patch.object(optim.importlib.util, "find_spec", return_value=None),
        pytest.raises(ConfigError, match=r"bitsandbytes is not installed; install it.*or choose optim=adamw_bf16_stat"),
    ):
        build_optimizer(nn.Linear(2, 2), EIGHT_BITS)


def test_8_bits_without_cuda_are_refused() -> None:
    with (
        patch.object(optim.importlib.util, "find_spec", return_value=SimpleNamespace()),
        patch.object(torch.cuda, "is_available", return_value=False),
        pytest.raises(ConfigError, match="adamw_8bit, but there is no CUDA device; train on one, or choose"),
    ):
        refuse_absent(EIGHT_BITS)


def test_8_bits_are_those_of_bitsandbytes() -> None:
    package = ModuleType("bitsandbytes.optim")
    vars(package)["AdamW8bit"] = torch.optim.AdamW  # takes the same arguments
    model = nn.Linear(2, 2)
    with (
        patch.dict(sys.modules, {"bitsandbytes": ModuleType("bitsandbytes"), "bitsandbytes.optim": package}),
        patch.object(optim, "refuse_absent"),
    ):
        (group,) = build_optimizer(model, EIGHT_BITS).param_groups
    assert group["param_names"] == ["weight", "bias"]
    assert group["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"optim\.learning_rate is 0\.0"),
        ({"learning_rate": float("nan")}, r"optim\.learning_rate is nan"),
        ({"betas": [0.9]}, r"optim\.betas is \[0\.9\]; it must be two numbers"),
        ({"epsilon": 0.0}, r"optim\.epsilon is 0\.0"),
        ({"weight_decay": -0.1}, r"optim\.weight_decay is -0\.1"),
        ({"weight_decay": float("nan")}, r"optim\.weight_decay is nan"),
        ({"rounding_seed": -1}, r"optim\.rounding_seed is -1"),
        ({"lora_plus_ratio": 0.0}, r"optim\.lora_plus_ratio is 0\.0"),
        ({"name": OptimizerName.adafactor, "betas": [0.9, 0.95]}, "adafactor has neither; leave them out"),
    ],
)
def test_a_constant_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**dict[str, Any](learning_rate=1e-3) | changes)
