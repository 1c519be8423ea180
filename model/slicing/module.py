# SPDX-License-Identifier: Apache-2.0
"""The live carrier: a smaller model in memory, with weights of its own."""

from __future__ import annotations

import torch

from model.checkpoint.writer import check_plain
from model.gemma3n import Gemma3n
from model.slicing.config import slice_config
from model.slicing.cuts import place
from model.slicing.spec import SliceSpec


@torch.no_grad()
def slice_module(model: Gemma3n, spec: SliceSpec) -> Gemma3n:
    """The sub-model ``spec`` of a live model, as a model of its own.

    Weights are copied; dtype, device, train mode and which parameters are trained stay the parent's.

    Raises:
        SliceError: The spec does not fit.
        CheckpointError: The model has an adapter in it, which must be merged first, or sliced by itself.
    """
    check_plain(model, f"slice '{spec.name}'")
    config = model.config.text
    placed = [(place(name, spec, config), parameter) for name, parameter in model.named_parameters()]
    reference = next(model.parameters())
    small = Gemma3n.build(slice_config(model.config, spec), device=reference.device, dtype=reference.dtype)

    own = dict(small.named_parameters())
    for placement, parameter in placed:
        if placement is not None:
            mine = own.pop(placement.name)
            mine.copy_(placement.take(parameter))
            mine.requires_grad_(parameter.requires_grad)
    assert not own, f"the table of cuts does not fill {sorted(own)}"
    small.recompute_layers = model.recompute_layers
    return small.train(model.training)
