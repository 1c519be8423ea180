# SPDX-License-Identifier: Apache-2.0
"""What the known vision towers are made of: one row per block, as data.

A stage's first block halves the picture; the later ones keep its size. The blocks themselves are in
blocks.py and attention.py, and read these rows; so does shapes.py, which needs no torch for it.

Source: MobileNetV4 (arXiv:2404.10518) for the blocks; timm's ``mobilenetv5_300m_enc`` for the table of
Gemma 3n's tower. There is no MobileNetV5 paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import ConfigError
from model.tower_config import VisionConfig

STEM_KERNEL = 3
FUSED_STAGES = 2  # the last ones; published


@dataclass(frozen=True, kw_only=True)
class EdgeRow:
    """An edge residual: a full convolution widens, a 1×1 one narrows."""

    channels: int
    stride: int = 1
    kernel: int = 3
    expansion: int = 4

    def wide(self, ins: int) -> int:
        """Channels between the two convolutions, of ``ins`` before them."""
        return ins * self.expansion


@dataclass(frozen=True, kw_only=True)
class BottleneckRow:
    """A universal inverted bottleneck: 1×1 convolutions widen and narrow; depthwise ones (kernel 0: none) may
    stand before and between them."""

    channels: int
    stride: int = 1
    start_kernel: int = 0
    mid_kernel: int = 0
    expansion: int = 2

    def wide(self, ins: int) -> int:
        """Channels between the two 1×1 convolutions, of ``ins`` before them."""
        return ins * self.expansion


@dataclass(frozen=True, kw_only=True)
class AttentionRow:
    """Mobile multi-query attention; keys and values are read from a grid ``kv_stride`` times coarser."""

    channels: int
    heads: int
    head_dim: int
    kv_stride: int = 1
    kernel: int = 3  # of the depthwise convolution that coarsens; unused without one

    @property
    def query_channels(self) -> int:
        """Channels of the queries, all heads together."""
        return self.heads * self.head_dim


Row = EdgeRow | BottleneckRow | AttentionRow


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A whole tower: its stem, its stages, and the fusion of the last two stages into a grid of soft tokens."""

    picture_px: int  # side of the pictures it is meant for; others work too
    stem_channels: int
    stages: tuple[tuple[Row, ...], ...]
    fused_channels: int  # the width of a soft token
    grid: int  # soft tokens along each side, whatever the picture's size
    fusion_expansion: int = 2

    @property
    def soft_tokens(self) -> int:
        """How many soft tokens one picture becomes."""
        return self.grid * self.grid

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """The width each stage puts out."""
        return tuple(stage[-1].channels for stage in self.stages)

    @property
    def blocks(self) -> tuple[tuple[tuple[int, Row], ...], ...]:
        """The stages' rows, each with the channels that its block is given."""
        stages, ins = [], self.stem_channels
        for rows in self.stages:
            given = (ins, *(row.channels for row in rows[:-1]))
            stages.append(tuple(zip(given, rows, strict=True)))
            ins = rows[-1].channels
        return tuple(stages)

    @property
    def fusion(self) -> tuple[int, BottleneckRow]:
        """What mixes the fused stages, and the channels they have together."""
        row = BottleneckRow(channels=self.fused_channels, expansion=self.fusion_expansion)
        return sum(self.stage_channels[-FUSED_STAGES:]), row


def _attend(channels: int, *, heads: int, head_dim: int, kv_stride: int = 1) -> tuple[Row, Row]:
    """Attention, and the bottleneck without depthwise convolutions that follows it wherever it occurs."""
    attention = AttentionRow(channels=channels, heads=heads, head_dim=head_dim, kv_stride=kv_stride)
    return attention, BottleneckRow(channels=channels)


ARCHITECTURES = {
    "mobilenetv5_300m_enc": Architecture(
        picture_px=768,
        stem_channels=64,
        stages=(
            (EdgeRow(channels=128, stride=2), EdgeRow(channels=128), EdgeRow(channels=128)),
            (
                BottleneckRow(channels=256, stride=2, start_kernel=3, mid_kernel=5, expansion=6),
                *(BottleneckRow(channels=256, start_kernel=kernel, expansion=4) for kernel in (5, 3, 5, 3)),
            ),
            (
                BottleneckRow(channels=640, stride=2, start_kernel=5, mid_kernel=5, expansion=6),
                *(BottleneckRow(channels=640, start_kernel=5, expansion=4),) * 7,
                BottleneckRow(channels=640, expansion=1),
                *_attend(640, heads=12, head_dim=64, kv_stride=2) * 14,
            ),
            (
                BottleneckRow(channels=1280, stride=2, start_kernel=5, mid_kernel=5, expansion=6),
                *_attend(1280, heads=16, head_dim=96) * 19,
            ),
        ),
        fused_channels=2048,
        grid=16,
    ),
    # The same kinds of blocks, small enough to train from nothing on one core within minutes. One stage fewer:
    # at 64 pixels the fused grid is 8×8, and is pooled to 4×4 as the large tower's 48×48 is to 16×16.
    "mobilenetv5_tiny_enc": Architecture(
        picture_px=64,
        stem_channels=8,
        stages=(
            (EdgeRow(channels=16, stride=2, expansion=2), EdgeRow(channels=16, expansion=2)),
            (
                BottleneckRow(channels=24, stride=2, start_kernel=3, mid_kernel=5, expansion=2),
                BottleneckRow(channels=24, start_kernel=5),
                *_attend(24, heads=2, head_dim=16, kv_stride=2),
            ),
            (
                BottleneckRow(channels=32, stride=2, start_kernel=5, mid_kernel=5),
                *_attend(32, heads=2, head_dim=16),
            ),
        ),
        fused_channels=64,
        grid=4,
    ),
}


def architecture(name: str) -> Architecture:
    """The table of the tower called ``name``.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"vision_config.architecture is {name!r}; known are {', '.join(ARCHITECTURES)}: use one of them, or add "
            "its table to model/vision/stages.py"
        )
    return ARCHITECTURES[name]


def checked_table(config: VisionConfig) -> Architecture:
    """The table of the config's architecture.

    Raises:
        ConfigError: It is not known, or does not fit what else the config says.
    """
    table = architecture(config.architecture)
    if config.hidden_size != table.fused_channels:
        raise ConfigError(
            f"vision_config.hidden_size is {config.hidden_size}, but {config.architecture} puts out "
            f"{table.fused_channels} channels; set hidden_size to {table.fused_channels}"
        )
    if config.tokens.per_item != table.soft_tokens:
        raise ConfigError(
            f"vision_soft_tokens_per_image is {config.tokens.per_item}, but {config.architecture} makes "
            f"{table.grid} × {table.grid} soft tokens of a picture; set it to {table.soft_tokens}"
        )
    return table
