# SPDX-License-Identifier: Apache-2.0
"""Gradients that cost nothing, and states that were in a file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def give_gradients(parameters: Mapping[str, nn.Parameter], step: int) -> None:
    """Random ones, by step and by place."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def take_steps(model: nn.Module, optimizer: Optimizer, *steps: int) -> None:
    for step in steps:
        give_gradients(trained(model), step)
        optimizer.step()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def remembered_by_name(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """What is remembered of each parameter."""
    return {
        name: optimizer.state[parameter]
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }


def assert_same_memory(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> None:
    """Same names, statistics and dtypes, and bit for bit the same values."""
    assert left.keys() == right.keys()
    for name, statistics in left.items():
        assert statistics.keys() == right[name].keys()
        for statistic, value in statistics.items():
            other = torch.as_tensor(right[name][statistic])
            assert torch.equal(torch.as_tensor(value), other), (name, statistic)
            assert torch.as_tensor(value).dtype == other.dtype
