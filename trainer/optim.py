# SPDX-License-Identifier: Apache-2.0
"""The optimizer, over exactly the parameters that are trained."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Adafactor, AdamW, Optimizer

from model.errors import ConfigError
from trainer.optimizers.adamw_bf16 import AdamWBf16States
from trainer.optimizers.by_name import follow_names
from trainer.optimizers.config import OptimConfig, OptimizerName
from trainer.optimizers.groups import group_parameters

Groups = list[dict[str, Any]]  # as torch's optimizers take them
BITSANDBYTES = "bitsandbytes"


def build_adamw(groups: Groups, config: OptimConfig) -> Optimizer:
    """AdamW with decoupled weight decay. Source: Loshchilov & Hutter, arXiv 1711.05101."""
    return AdamW(
        groups, lr=config.learning_rate, betas=betas_of(config), eps=config.epsilon,
        weight_decay=config.weight_decay, fused=config.fused,
    )  # fmt: skip


def build_adamw_bf16_states(groups: Groups, config: OptimConfig) -> Optimizer:
    """AdamW with moments in bfloat16."""
    return AdamWBf16States(
        groups, lr=config.learning_rate, betas=betas_of(config), eps=config.epsilon,
        weight_decay=config.weight_decay, seed=config.rounding_seed,
    )  # fmt: skip


def build_adamw_8bit(groups: Groups, config: OptimConfig) -> Optimizer:
    """AdamW with moments in 8 bits. Source: Dettmers et al., arXiv 2110.02861, by its authors' package."""
    adamw = importlib.import_module(f"{BITSANDBYTES}.optim").AdamW8bit
    return adamw(
        groups, lr=config.learning_rate, betas=betas_of(config), eps=config.epsilon, weight_decay=config.weight_decay
    )


def build_adafactor(groups: Groups, config: OptimConfig) -> Optimizer:
    """Adafactor. Source: Shazeer & Stern, arXiv 1804.04235, as torch has it.

    A step is a share of the parameter's own size: ``learning_rate``, but never more than one over the root of the
    number of steps so far.
    """
    return Adafactor(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


OPTIMIZERS: dict[OptimizerName, Callable[[Groups, OptimConfig], Optimizer]] = {
    OptimizerName.adamw: build_adamw,
    OptimizerName.adamw_bf16_states: build_adamw_bf16_states,
    OptimizerName.adamw_8bit: build_adamw_8bit,
    OptimizerName.adafactor: build_adafactor,
}
# Whose steps are not lost in bfloat16 weights.
ROUNDING = frozenset({OptimizerName.adamw_bf16_states})


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer over the parameters of ``model`` that require a gradient.

    Every group has a ``learning_rate_scale``; ``trainer/optimizers/groups.py: set_learning_rate`` sets the rates of a
    step. The state goes by names; see ``trainer/optimizers/by_name.py``.

    Elastic training gives the neurons that a step does not use a gradient of exactly zero, not None; AdamW
    still moves them by their momentum and shrinks them by weight decay. The first is what the momentum of
    any rarely touched weight does; the second would wear the widest sub-models down, hence a default decay
    of zero. Layers that a step skips have no gradient and are left alone.

    Raises:
        ConfigError: As ``refuse_unusable``.
    """
    refuse_unusable(model, config)
    optimizer = OPTIMIZERS[config.name](group_parameters(trained_of(model), config), config)
    follow_names(optimizer)
    return optimizer


def refuse_unusable(model: nn.Module, config: OptimConfig) -> None:
    """Check what can be checked before there are weights: ``model`` may be on the meta device.

    Raises:
        ConfigError: Nothing is trained, or something in less than float32 by an optimizer that would lose its steps;
            a group has no parameters; or the optimizer is not installed or does not run on this machine.
    """
    trained = trained_of(model)
    if not trained:
        raise ConfigError("optim: no parameter requires a gradient; attach an adapter or unfreeze the model")
    allowed = {torch.float32, torch.bfloat16} if config.name in ROUNDING else {torch.float32}
    for name, parameter in trained.items():
        if parameter.dtype not in allowed:
            raise ConfigError(
                f"optim: '{name}' is trained but is {parameter.dtype}, which rounds small updates away;"
                f" set trainer.precision=fp32, or optim={OptimizerName.adamw_bf16_states}, or train an adapter, which"
                " stays float32"
            )
    refuse_absent(config)
    group_parameters(trained, config)


def refuse_absent(config: OptimConfig) -> None:
    """Raise ConfigError if the optimizer is not installed, or does not run on this machine."""
    if config.name is not OptimizerName.adamw_8bit:
        return
    instead = f"or choose optim={OptimizerName.adamw_bf16_states}, which runs anywhere"
    if importlib.util.find_spec(BITSANDBYTES) is None:
        raise ConfigError(
            f"optim.name is {OptimizerName.adamw_8bit}, but {BITSANDBYTES} is not installed; install it"
            f" (pip install 'matslice[eight_bit]'), {instead}"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"optim.name is {OptimizerName.adamw_8bit}, but there is no CUDA device; train on one, {instead}"
        )


def trained_of(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that require a gradient, by the model's names for them."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def betas_of(config: OptimConfig) -> tuple[float, float]:
    """How much AdamW's moments keep in a step."""
    first, second = config.betas
    return first, second
