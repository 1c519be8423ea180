# SPDX-License-Identifier: Apache-2.0
"""Root-mean-square normalisation in float32, also in a model of bfloat16; one of float64 stays as exact as it is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def rms_norm(
    x: Float[Tensor, "... dim"], eps: float, weight: Float[Tensor, " dim"] | None = None
) -> Float[Tensor, "... dim"]:
    """Scale ``x`` to a root mean square of one over ``dim``, times ``weight``; in the dtype of ``x``.

    Source: Gemma 3n, which multiplies by the weight itself (not by one plus it) before casting back,
    and takes the power -1/2 rather than a reciprocal square root.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * (wide.square().mean(-1, keepdim=True) + eps).pow(-0.5)
    if weight is not None:
        normed = normed * weight.to(wide.dtype)
    return normed.type_as(x)


class RMSNorm(nn.Module):
    """``rms_norm`` with a learned scale. Norms without a scale have no parameter, and are calls of the function."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Normalise over the last axis."""
        return rms_norm(x, self.eps, self.weight)
