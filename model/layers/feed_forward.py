# SPDX-License-Identifier: Apache-2.0
"""The gated feed-forward network: the part of a layer that MatFormer nests, and Gaussian top-k sparsity."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.layers.linear import NarrowLinear


def gaussian_top_k(gate: Float[Tensor, "batch seq width"], quantile: float) -> Float[Tensor, "batch seq width"]:
    """Keep roughly the largest of each token's gate values, shifted to start at zero.

    The threshold takes the values of one token for normal: mean + ``quantile``·std over ``width``.
    It is taken over the width *in use*, so a narrowed layer thresholds
    exactly as the layer cut to that width would.

    Args:
        gate: Values before the activation, in the model's dtype; mean and std are taken in it too.
        quantile: That of the share to silence; see ``normal_quantile``.

    Source: Gemma 3n, sparse layers (``activation_sparsity_pattern``); std is the population one.
    """
    # Rounded to the model's dtype like the reference's tensor: a bfloat16 model was trained with 1.6484375.
    rounded = torch.tensor(quantile, dtype=gate.dtype, device=gate.device)
    std, mean = torch.std_mean(gate, dim=-1, keepdim=True, correction=0)
    return F.relu(gate - (mean + std * rounded))


def normal_quantile(share: float) -> float:
    """Standard deviations above the mean that ``share`` of a normal's values lie below.

    Every step in float32, as the reference takes them: the last bit of it moves every sparse neuron.
    """
    share_float32 = torch.tensor(share, dtype=torch.float32, device="cpu")
    return (torch.erfinv(2 * share_float32 - 1) * math.sqrt(2)).item()


class FeedForward(nn.Module):
    """``down(gelu(gate) * up)`` at the first ``width`` neurons."""

    def __init__(self, dim: int, width: int, sparsity: float) -> None:
        super().__init__()
        self.width = width
        self.quantile = normal_quantile(sparsity) if sparsity > 0 else None  # a dense layer silences none
        self.gate_proj = NarrowLinear(dim, width)
        self.up_proj = NarrowLinear(dim, width)
        self.down_proj = NarrowLinear(width, dim)

    def forward(self, x: Float[Tensor, "batch seq dim"], width: int) -> Float[Tensor, "batch seq dim"]:
        """Apply the network as if it had been built with ``width`` neurons (at most its own number)."""
        if width == self.width:  # plain calls: any stand-in for a linear layer will do, not only a narrowing one
            return self.down_proj(self.activate(self.gate_proj(x)) * self.up_proj(x))
        hidden = self.activate(self.gate_proj(x, rows=width)) * self.up_proj(x, rows=width)
        return self.down_proj(hidden, columns=width)

    def activate(self, gate: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"]:
        """Silence most of a sparse layer's neurons, then GELU (tanh form)."""
        if self.quantile is not None:
            gate = gaussian_top_k(gate, self.quantile)
        return F.gelu(gate, approximate="tanh")
