# SPDX-License-Identifier: Apache-2.0
"""The optimizer, over exactly the parameters that are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from model.errors import ConfigError


class OptimizerName(StrEnum):
    """The optimizers there are."""

    adamw = "adamw"


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """The optimizer and its constants.

    Raises:
        ConfigError: A value is out of its range.
    """

    learning_rate: float  # the peak; the schedule scales it
    name: OptimizerName = OptimizerName.adamw
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"optim.learning_rate is {self.learning_rate}; it must be positive and finite")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas is {list(self.betas)}; it must be two numbers in [0, 1)")
        if not self.epsilon > 0:
            raise ConfigError(f"optim.epsilon is {self.epsilon}; it must be positive")
        if not self.weight_decay >= 0:
            raise ConfigError(f"optim.weight_decay is {self.weight_decay}; it must not be negative")


def build_adamw(parameters: list[nn.Parameter], config: OptimConfig) -> Optimizer:
    """AdamW with decoupled weight decay. Source: Loshchilov & Hutter, arXiv 1711.05101."""
    beta1, beta2 = config.betas
    return AdamW(
        parameters, lr=config.learning_rate, betas=(beta1, beta2), eps=config.epsilon, weight_decay=config.weight_decay
    )


OPTIMIZERS: dict[OptimizerName, Callable[[list[nn.Parameter], OptimConfig], Optimizer]] = {
    OptimizerName.adamw: build_adamw,
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer over the parameters of ``model`` that require a gradient.

    Elastic training gives the neurons that a step does not use a gradient of exactly zero, not None; AdamW
    still moves them by their momentum and shrinks them by weight decay. The first is what the momentum of
    any rarely touched weight does; the second would wear the widest sub-models down, hence a default decay
    of zero. Layers that a step skips have no gradient and are left alone.

    Raises:
        ConfigError: Nothing is trained, or something is trained in less than float32.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ConfigError("optim: no parameter requires a gradient; attach an adapter or unfreeze the model")
    for name, parameter in trained.items():
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"optim: '{name}' is trained but is {parameter.dtype}, which rounds small updates away;"
                " set trainer.precision=fp32, or train an adapter, which stays float32"
            )
    return OPTIMIZERS[config.name](list(trained.values()), config)
