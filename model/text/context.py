# SPDX-License-Identifier: Apache-2.0
"""What all layers of one type are told about the sequence: where each token is, and whom it may attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.config import LayerType, TextConfig
from model.inputs import Inputs
from model.layers.mask import attention_mask
from model.layers.rotary import Rotary


@dataclass(frozen=True)
class Context:
    """That of one type of layer."""

    rotary: Rotary
    mask: Bool[Tensor, "batch 1 seq keys"]


def contexts_of(
    config: TextConfig, inputs: Inputs, seen: Bool[Tensor, "batch keys"], dtype: torch.dtype
) -> dict[LayerType, Context]:
    """Rotations and mask of each layer type.

    Args:
        config: Of the text decoder.
        inputs: The tokens that attend.
        seen: Which tokens are real, of all there have been: those of the cache first.
        dtype: Of the rotations.
    """
    places = positions(inputs, num_keys=seen.shape[1])
    bases = {
        LayerType.full_attention: (config.rope_theta, None),
        LayerType.sliding_attention: (config.rope_local_base_freq, config.sliding_window),
    }
    return {
        kind: Context(
            Rotary.at(places, head_dim=config.head_dim, base=base, dtype=dtype),
            attention_mask(seen, inputs.ids.shape[1], window, documents=inputs.documents),
        )
        for kind, (base, window) in bases.items()
    }


def positions(inputs: Inputs, *, num_keys: int) -> Int[Tensor, "rows seq"]:
    """Where each token is, counted from the first column, padding included, or from the beginning of its document.

    One row of positions stands for all where they are alike.
    """
    num_queries, device = inputs.ids.shape[1], inputs.ids.device
    columns = torch.arange(num_keys - num_queries, num_keys, device=device)[None]
    if inputs.documents is None:
        return columns
    begins = torch.ones_like(inputs.mask)
    begins[:, 1:] = inputs.documents.diff(dim=1) != 0
    return columns - torch.where(begins, columns, 0).cummax(dim=1).values
