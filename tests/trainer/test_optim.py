# SPDX-License-Identifier: Apache-2.0
"""The optimizer moves what is trained, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from model.errors import ConfigError
from trainer.optim import OptimConfig, build_optimizer


def test_only_parameters_that_require_a_gradient_are_in_the_optimizer() -> None:
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    groups = build_optimizer(model, OptimConfig(learning_rate=1e-3)).param_groups
    assert [parameter is model.bias for group in groups for parameter in group["params"]] == [True]


def test_without_weight_decay_a_neuron_never_used_never_moves() -> None:
    model = nn.Linear(3, 4, bias=False)
    optimizer, before = build_optimizer(model, OptimConfig(learning_rate=0.1)), model.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 3))[:, :2].sum().backward()
        optimizer.step()
    moved = (model.weight.detach() != before).any(dim=1)
    assert moved.tolist() == [True, True, False, False]


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter requires a gradient"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig(learning_rate=1e-3))


def test_training_bfloat16_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'weight' is trained but is torch\.bfloat16.*precision=fp32"):
        build_optimizer(nn.Linear(2, 2, dtype=torch.bfloat16), OptimConfig(learning_rate=1e-3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"optim\.learning_rate is 0\.0"),
        ({"learning_rate": float("nan")}, r"optim\.learning_rate is nan"),
        ({"betas": [0.9]}, r"optim\.betas is \[0\.9\]; it must be two numbers"),
        ({"epsilon": 0.0}, r"optim\.epsilon is 0\.0"),
        ({"weight_decay": -0.1}, r"optim\.weight_decay is -0\.1"),
    ],
)
def test_a_constant_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**dict[str, Any](learning_rate=1e-3) | changes)
