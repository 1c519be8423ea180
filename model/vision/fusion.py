# SPDX-License-Identifier: Apache-2.0
"""Several stages' outputs become one grid of soft tokens.

Source: timm's ``MobileNetV5MultiScaleFusionAdapter``; no paper describes it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.vision.blocks import NORM_EPS, InvertedBottleneck
from model.vision.norm import ChannelNorm
from model.vision.stages import Architecture


class MultiScaleFusion(nn.Module):
    """The last stages at the finest one's resolution, mixed, brought to the grid, normalised."""

    def __init__(self, table: Architecture) -> None:
        super().__init__()
        self.grid = table.grid
        self.ffn = InvertedBottleneck(*table.fusion, residual=False)
        self.norm = ChannelNorm(table.fused_channels, NORM_EPS)

    def forward(
        self, finest: Float[Tensor, "images _ height width_px"], *coarser: Float[Tensor, "images _ _ _"]
    ) -> Float[Tensor, "images channels grid grid"]:
        """Soft tokens as maps, from the outputs of the fused stages, the finest first."""
        size = finest.shape[-2:]
        resized = [maps if maps.shape[-2:] == size else F.interpolate(maps, size=size) for maps in coarser]
        return self.norm(to_grid(self.ffn(torch.cat((finest, *resized), dim=1)), self.grid))


def to_grid(
    x: Float[Tensor, "images channels height width_px"], grid: int
) -> Float[Tensor, "images channels {grid} {grid}"]:
    """``grid`` × ``grid`` means of equal patches; where the size is no multiple of the grid, interpolated."""
    height, width = x.shape[-2:]
    if (height, width) == (grid, grid):
        return x
    if height % grid or width % grid:
        return F.interpolate(x, size=(grid, grid), mode="bilinear")
    return F.avg_pool2d(x, (height // grid, width // grid))
