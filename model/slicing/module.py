# SPDX-License-Identifier: Apache-2.0
"""The live carrier: a smaller model in memory, with weights of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from model.checkpoint.saving import check_plain
from model.errors import CheckpointError
from model.gemma3n import Gemma3n
from model.slicing.config import slice_config
from model.slicing.cuts import Placement, place
from model.slicing.submodel import SubModel


@torch.no_grad()
def slice_module(model: Gemma3n, sub: SubModel) -> Gemma3n:
    """The part ``sub`` of a live model, as a model of its own.

    Weights are copied; dtype, device, train mode and which parameters are trained stay the parent's.

    Raises:
        ConfigError: The parent has no tower for one of the modalities.
        SliceError: The sub-model does not fit.
        CheckpointError: The model has an adapter in it, which must be merged first, or sliced by itself; or its
            per-layer table is not on its device.
    """
    check_plain(model, f"slice '{sub.name}'")
    if model.per_layer_table is not None:
        raise CheckpointError(
            f"slice '{sub.name}': the model's per-layer table is not on its device; load it there"
            " (per_layer_table=device), or load the sub-model itself from the checkpoint"
        )
    config = model.config.text
    reference = next(model.parameters())
    small = Gemma3n.build(slice_config(model.config, sub), device=reference.device, dtype=reference.dtype)

    own = dict(small.named_parameters())
    for name, parameter in model.named_parameters():
        if placement := place(name, sub, config):
            mine = own.pop(placement.name)
            mine.copy_(take(placement, parameter))
            mine.requires_grad_(parameter.requires_grad)
    assert not own, f"the table of cuts does not fill {sorted(own)}"
    small.recompute = model.recompute
    return small.train(model.training)


def take(placement: Placement, tensor: Tensor) -> Tensor:
    """The part of a parent's tensor that goes into the sub-model; may share memory with it."""
    for kept in placement.kept:
        parts = [tensor.narrow(kept.axis, some.start, len(some)) for some in kept.ranges]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=kept.axis)
    return tensor
