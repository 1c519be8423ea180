# SPDX-License-Identifier: Apache-2.0
"""What all layers of one type are told about the sequence: where each token is, and whom it may attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.config import LayerType, TextConfig
from model.inputs import Inputs
from model.layers.kernel import AttentionKernel, DenseKernel, DocumentKernel, FlexKernel, Kernel
from model.layers.mask import attention_mask
from model.layers.rotary import Rotary


@dataclass(frozen=True)
class Context:
    """That of one type of layer."""

    rotary: Rotary
    kernel: Kernel


def contexts_of(
    config: TextConfig,
    inputs: Inputs,
    seen: Bool[Tensor, "batch keys"],
    dtype: torch.dtype,
    attention: AttentionKernel = AttentionKernel.dense,
) -> dict[LayerType, Context]:
    """Rotations and attention of each layer type.

    Args:
        config: Of the text decoder.
        inputs: The tokens that attend.
        seen: Which tokens are real, of all there have been: those of the cache first.
        dtype: Of the rotations.
        attention: What computes it; another than dense only where the tokens that attend are all there have been.
    """
    places = positions(inputs, num_keys=seen.shape[1])
    bases = {
        LayerType.full_attention: (config.rope_theta, None),
        LayerType.sliding_attention: (config.rope_local_base_freq, config.sliding_window),
    }
    return {
        kind: Context(
            Rotary.at(places, head_dim=config.head_dim, base=base, dtype=dtype),
            kernel_of(attention, inputs, seen, window),
        )
        for kind, (base, window) in bases.items()
    }


def kernel_of(
    attention: AttentionKernel, inputs: Inputs, seen: Bool[Tensor, "batch keys"], window: int | None
) -> Kernel:
    """What computes the attention of one type of layer."""
    lengths = inputs.known_lengths() if attention.used is AttentionKernel.documents else None
    if lengths is not None:
        return DocumentKernel(lengths, window)
    if attention is AttentionKernel.flex:
        return FlexKernel.of(seen, window, documents=inputs.documents)
    return DenseKernel(attention_mask(seen, inputs.ids.shape[1], window, documents=inputs.documents))


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
