# SPDX-License-Identifier: Apache-2.0
"""The vision tower: pictures to soft tokens.

The encoder's parameters carry the published names (those timm gives them); the tower around it says
which architecture it is, and lays the grid out as tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.recompute import recomputed
from model.tower_config import COLOURS, VisionConfig
from model.vision.attention import MobileAttention
from model.vision.blocks import ConvNorm, EdgeResidual, InvertedBottleneck, convolution, gelu
from model.vision.fusion import MultiScaleFusion
from model.vision.stages import FUSED_STAGES, STEM_KERNEL, Architecture, AttentionRow, EdgeRow, Row, checked_table


class VisionTower(nn.Module):
    """Pictures of any size to a fixed number of soft tokens each.

    ``recompute`` trades time for memory: of each block only the input is kept for the backward pass,
    which runs the block again.

    Raises:
        ConfigError: The architecture is not known, or puts out another width than the config says.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.timm_model = Encoder(checked_table(config))

    def forward(self, pixels: Float[Tensor, "images 3 height width_px"]) -> Float[Tensor, "images tokens channels"]:
        """Soft tokens, row after row of the grid, in the tower's dtype; not yet scaled for the text decoder.

        Args:
            pixels: Colours in [0, 1]; nothing is subtracted or divided here.
        """
        # With channels last in memory, 1×1 convolutions are plain matrix products and norms run over neighbours
        # (on one CPU core: 6 % faster at 768 pixels, 4 % for the tiny tower).
        pixels = pixels.to(self.timm_model.conv_stem.conv.weight.dtype, memory_format=torch.channels_last)
        fused = self.timm_model(pixels, recompute=self.recompute)
        return fused.flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Stem, stages, fusion."""

    def __init__(self, table: Architecture) -> None:
        super().__init__()
        self.conv_stem = Stem(convolution(COLOURS, table.stem_channels, kernel=STEM_KERNEL, stride=2, bias=True))
        self.blocks = nn.Sequential(
            *(nn.Sequential(*(block(ins, row) for ins, row in stage)) for stage in table.blocks)
        )
        self.msfa = MultiScaleFusion(table)

    def forward(
        self, pixels: Float[Tensor, "images 3 height width_px"], *, recompute: bool
    ) -> Float[Tensor, "images channels grid grid"]:
        """Soft tokens as maps."""
        x, ends = run(self.conv_stem, pixels, recompute=recompute), []
        for stage in self.blocks:
            assert isinstance(stage, nn.Sequential)
            for step in stage:
                x = run(step, x, recompute=recompute)
            ends.append(x)
        return run(self.msfa, *ends[-FUSED_STAGES:], recompute=recompute)


class Stem(ConvNorm):
    """The first convolution, the only one with a bias."""

    def forward(
        self, x: Float[Tensor, "images 3 height width_px"]
    ) -> Float[Tensor, "images channels new_height new_width"]:
        """Halve the picture."""
        return gelu(super().forward(x))


def block(ins: int, row: Row) -> EdgeResidual | InvertedBottleneck | MobileAttention:
    """The block a row of the table describes, for ``ins`` input channels."""
    if isinstance(row, EdgeRow):
        return EdgeResidual(ins, row)
    if isinstance(row, AttentionRow):
        return MobileAttention(ins, row)
    return InvertedBottleneck(ins, row)


def run(step: nn.Module, *maps: Tensor, recompute: bool) -> Tensor:
    """One step of the tower, its activations kept or made again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return recomputed(step, *maps)
    return step(*maps)
