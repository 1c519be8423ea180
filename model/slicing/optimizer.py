# SPDX-License-Identifier: Apache-2.0
"""The optimizer carrier: what an optimizer remembers of the parameters of a sub-model, cut like the parameters.

A step of the parent under a spec gives every entry that the spec uses the gradient it has in the sub-model, so
its moments there are those of the sub-model. What else the parent moves (by decay, by older momentum) is cut away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from model.config import TextConfig
from model.errors import SliceError, counted
from model.slicing.adapter import PREFIX, place_factor
from model.slicing.cuts import Placement, place
from model.slicing.module import take
from model.slicing.submodel import SubModel

IN_MEMORY = ".default"  # what PEFT's names have in a model and not in a file: the adapter's name


def slice_optimizer(
    state: Mapping[str, Any], parameters: Mapping[str, Sequence[int]], sub: SubModel, config: TextConfig
) -> dict[str, Any]:
    """The part of an optimizer's state that belongs to the sub-model ``sub``, for an optimizer of its own.

    Moments, and whatever else has its parameter's shape, lose what the parameter loses. Numbers stay, counts of
    steps among them, and so do the groups with their constants. What was never stepped is remembered of nothing,
    here as there. All tensors are copies.

    Args:
        state: An optimizer's ``state_dict()``.
        parameters: Name and shape of each parameter it moves: of a model, or of one with a LoRA adapter in it, as
            ``named_parameters()`` gives them or as PEFT's files name them. In the order of the state's numbers,
            unless its groups have ``param_names``.
        sub: The part of the parent, checked against its config.
        config: The parent's text config.

    Raises:
        SliceError: The state is not of these parameters, nothing of it is left, or it holds what has another shape
            than its parameter that is to be cut, as row and column statistics have.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if sorted(numbers) != list(range(len(parameters))) or not numbers:
        raise SliceError(
            f"slice '{sub.name}': the optimizer moves {counted(len(numbers), 'parameter')}, but the model trains"
            f" {len(parameters)}; give the state of an optimizer of this model"
        )
    names = names_by_number(state, parameters, sub)
    placements = {number: place_parameter(names[number], sub, config) for number in sorted(names)}
    kept = {number: found for number, found in placements.items() if found is not None}
    if not kept:
        raise SliceError(
            f"slice '{sub.name}': keeps no parameter that is trained ({names[0]} and {len(names) - 1} more); nothing"
            " would go on; keep the layers and towers that are trained (skip_layers, modalities)"
        )
    # Numbers count parameters in the order of the groups, in every optimizer of torch.
    renumbered = {old: new for new, old in enumerate(number for number in numbers if number in kept)}
    return {
        "state": {
            renumbered[number]: slice_statistics(remembered, names[number], parameters[names[number]], kept[number])
            for number, remembered in state["state"].items()
            if number in kept
        },
        "param_groups": [slice_group(group, kept, renumbered) for group in state["param_groups"]],
    }


def names_by_number(state: Mapping[str, Any], parameters: Mapping[str, Sequence[int]], sub: SubModel) -> dict[int, str]:
    """The name, among those of ``parameters``, of each number of an optimizer."""
    if any("param_names" not in group for group in state["param_groups"]):
        return dict(enumerate(parameters))
    own = {name.replace(IN_MEMORY, ""): name for name in parameters}
    found = {
        number: name.replace(IN_MEMORY, "")
        for group in state["param_groups"]
        for number, name in zip(group["params"], group["param_names"], strict=True)
    }
    if others := sorted(set(found.values()) ^ own.keys()):
        raise SliceError(
            f"slice '{sub.name}': '{others[0]}' is either moved by the optimizer or trained by the model, not both;"
            " give the state of an optimizer of this model"
        )
    return {number: own[name] for number, name in found.items()}


def place_parameter(name: str, sub: SubModel, config: TextConfig) -> Placement | None:
    """Place one trained parameter in the sub-model; None if it is left out.

    It is a model's weight or a factor of its adapter, whose new name is that of PEFT's files.
    """
    if name.startswith(PREFIX):
        return place_factor(name.replace(IN_MEMORY, ""), sub, config)
    return place(name, sub, config)


def slice_statistics(
    remembered: Mapping[str, Any], name: str, shape: Sequence[int], placement: Placement
) -> dict[str, Any]:
    """What is remembered of one parameter, as far as the sub-model has it."""
    sliced = dict(remembered)
    for statistic, value in remembered.items():
        if isinstance(value, Mapping):
            raise SliceError(
                f"the optimizer's '{statistic}' of '{name}' holds several things, as moments in 8 bits do, and they"
                " cannot be cut: finish the run, and slice its weights"
            )
        if not isinstance(value, Tensor):
            continue
        is_cut = placement.kept and value.ndim > 0
        if is_cut and tuple(value.shape) != tuple(shape):
            raise SliceError(
                f"the optimizer's '{statistic}' of '{name}' has the shape {tuple(value.shape)}, the parameter"
                f" {tuple(shape)}; only what has its parameter's shape can be cut with it: finish the run, and"
                " slice its weights"
            )
        sliced[statistic] = (take(placement, value) if is_cut else value).clone()
    return sliced


def slice_group(
    group: Mapping[str, Any], kept: Mapping[int, Placement], renumbered: Mapping[int, int]
) -> dict[str, Any]:
    """A group with its constants, and those of its parameters that are kept, by their new numbers."""
    numbers = [number for number in group["params"] if number in kept]
    sliced = dict(group) | {"params": [renumbered[number] for number in numbers]}
    if "param_names" in group:
        sliced["param_names"] = [kept[number].name for number in numbers]
    return sliced
