# SPDX-License-Identifier: Apache-2.0
"""Root-mean-square normalisation of pictures over their channels, in the dtype they have."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Each pixel's channels scaled to a root mean square of one, times a learned weight.

    Unlike the text decoder's norm it is not widened to float32: the published tower was trained so.

    Source: timm's ``RmsNorm2d``.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "images channels height width_px"]) -> Float[Tensor, ...]:
        """Normalise; the shape stays."""
        normed = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.eps)
        return normed * self.weight[:, None, None]
