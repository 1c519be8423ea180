# SPDX-License-Identifier: Apache-2.0
"""Which learning rate and weight decay each trained parameter has.

Every group of an optimizer has a ``learning_rate_scale``: the learning rate of a step, times that, is the group's.
Parameters are known by their published names: a weight's in the checkpoint, and for a factor of an adapter its
module's with ``.lora_A.weight`` or the like behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from model.errors import ConfigError, counted
from model.slicing.adapter import PREFIX
from model.slicing.optimizer import IN_MEMORY
from trainer.optimizers.config import GroupConfig, OptimConfig

UP_FACTOR = ".lora_B."  # of a linear layer's adapter; in those of embeddings the factors have other names and roles
SHOWN = 3  # names told in a message


def published_name(name: str) -> str:
    """The name that a parameter has in a checkpoint or an adapter's file, from what ``named_parameters`` calls it."""
    return name.removeprefix(PREFIX).replace(IN_MEMORY, "")


def group_parameters(trained: Mapping[str, nn.Parameter], config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of named parameters for an optimizer, one for each way in which parameters are treated.

    Raises:
        ConfigError: A group has no parameter, or none is the factor of an adapter that is to learn faster.
    """
    names = {name: published_name(name) for name in trained}
    published = list(names.values())
    if config.lora_plus_ratio is not None and not any(UP_FACTOR in name for name in published):
        raise ConfigError(
            f"optim.lora_plus_ratio is {config.lora_plus_ratio}, but no adapter of a linear layer is trained, only"
            f" {shown(published)}; train one, or set it to null"
        )
    found: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    taken: set[int] = set()
    for name, parameter in trained.items():
        number = first_match(names[name], config.groups)
        group = None if number is None else config.groups[number]
        taken |= set() if number is None else {number}
        found.setdefault(treatment(names[name], parameter, group, config), []).append((name, parameter))
    refuse_empty(config.groups, published, taken=taken)
    return [
        {
            "params": named, "lr": config.learning_rate * scale, "learning_rate_scale": scale,
            "weight_decay": weight_decay,
        }
        for (scale, weight_decay), named in found.items()
    ]  # fmt: skip


def first_match(name: str, groups: Sequence[GroupConfig]) -> int | None:
    """The number of the first group whose pattern is found in a name."""
    return next((number for number, group in enumerate(groups) if re.search(group.match, name)), None)


def treatment(
    name: str, parameter: nn.Parameter, group: GroupConfig | None, config: OptimConfig
) -> tuple[float, float]:
    """The scale of a parameter's learning rate, and its weight decay; ``group`` is what it has of its own.

    An adapter's B learns faster, whatever its group. Source: Hayou et al., LoRA+, arXiv 2402.12354.
    """
    scale = 1.0 if group is None else group.scale(config.learning_rate)
    if config.lora_plus_ratio is not None and UP_FACTOR in name:
        scale *= config.lora_plus_ratio
    if group is not None and group.weight_decay is not None:
        return scale, group.weight_decay
    return scale, config.weight_decay if config.decay_vectors or parameter.ndim > 1 else 0.0


def refuse_empty(groups: Sequence[GroupConfig], names: Sequence[str], *, taken: set[int]) -> None:
    """Raise ConfigError naming the first group that no parameter belongs to."""
    for number, group in enumerate(groups):
        if number in taken:
            continue
        if matching := [name for name in names if re.search(group.match, name)]:
            raise ConfigError(
                f"optim.groups: all that '{group.match}' matches ({shown(matching)}) belongs to earlier groups, and"
                " the first that matches counts; put it before them, or leave it out"
            )
        raise ConfigError(
            f"optim.groups: '{group.match}' matches nothing that is trained ({shown(names)}); mend the pattern, or"
            " leave the group out"
        )


def shown(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give every group its learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["learning_rate_scale"]


def describe_groups(optimizer: Optimizer) -> list[str]:
    """A line for each group: how much it moves, and how."""
    return [
        f"{counted(len(group['params']), 'tensor')}, {sum(p.numel() for p in group['params']):,} parameters:"
        f" learning rate × {group['learning_rate_scale']:g}, weight decay {group['weight_decay']:g}"
        for group in optimizer.param_groups
    ]
