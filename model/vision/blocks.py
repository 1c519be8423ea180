# SPDX-License-Identifier: Apache-2.0
"""The tower's convolutional blocks: edge residual and universal inverted bottleneck.

Attribute names are the published ones, hence `bn` for norms that are no batch norms.

Source: MobileNetV4, arXiv:2404.10518 (the universal inverted bottleneck); timm for the names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.vision.norm import ChannelNorm
from model.vision.stages import BottleneckRow, EdgeRow

NORM_EPS = 1e-6  # of every norm inside the tower; the published config has no field for it

Maps = Float[Tensor, "images channels height width_px"]
NewMaps = Float[Tensor, "images new_channels new_height new_width"]


class SameConv(nn.Conv2d):
    """A strided convolution that pads what it is given, so that it puts out ⌈size / stride⌉ rows and columns.

    Missing padding is split evenly; of an odd amount the larger half goes to the end, so it looks at
    other pixels for even than for odd sizes. Made as torch's own (LoRA makes its factors of a layer's class).

    Source: TensorFlow's "SAME" padding.
    """

    def forward(self, input: Maps) -> NewMaps:  # noqa: A002 - the name nn.Conv2d gives it
        """Pad and convolve."""
        height, width = input.shape[-2:]
        top, left = self.missing(height, axis=0), self.missing(width, axis=1)
        return super().forward(F.pad(input, (left // 2, left - left // 2, top // 2, top - top // 2)))

    def missing(self, size: int, *, axis: int) -> int:
        """Rows (or columns) to add to ``size`` of them."""
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        steps = (size - 1) // stride  # to the last place the kernel is put
        return max(0, steps * stride + kernel - size)


def convolution(ins: int, outs: int, *, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that puts out ⌈size / stride⌉ rows and columns; without a stride torch's own padding does it."""
    if stride > 1:
        return SameConv(ins, outs, kernel, stride, groups=groups, bias=bias)
    return nn.Conv2d(ins, outs, kernel, padding=kernel // 2, groups=groups, bias=bias)


def gelu(x: Tensor) -> Tensor:
    """The tower's activation, with the tangent approximation."""
    return F.gelu(x, approximate="tanh")


class ConvNorm(nn.Module):
    """A convolution and its norm."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = ChannelNorm(conv.out_channels, NORM_EPS)

    def forward(self, x: Maps) -> NewMaps:
        """Convolve, normalise; no activation."""
        return self.bn(self.conv(x))


class LayerScale(nn.Module):
    """A learned factor per channel on what a block adds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Maps) -> Maps:
        """Scale each channel."""
        return x * self.gamma[:, None, None]


class EdgeResidual(nn.Module):
    """A full convolution that widens, a 1×1 one that narrows; the input is added where shapes allow."""

    def __init__(self, ins: int, row: EdgeRow) -> None:
        super().__init__()
        wide = row.wide(ins)
        self.has_skip = row.stride == 1 and ins == row.channels
        self.conv_exp = convolution(ins, wide, kernel=row.kernel, stride=row.stride)
        self.bn1 = ChannelNorm(wide, NORM_EPS)
        self.conv_pwl = convolution(wide, row.channels, kernel=1)
        self.bn2 = ChannelNorm(row.channels, NORM_EPS)

    def forward(self, x: Maps) -> NewMaps:
        """Widen, activate, narrow."""
        made = self.bn2(self.conv_pwl(gelu(self.bn1(self.conv_exp(x)))))
        return x + made if self.has_skip else made


class InvertedBottleneck(nn.Module):
    """Depthwise, widen, depthwise, narrow, scale; either depthwise convolution may be missing.

    ``residual=False`` is the form inside the fusion adapter: nothing is added, nothing scaled.
    """

    def __init__(self, ins: int, row: BottleneckRow, *, residual: bool = True) -> None:
        super().__init__()
        wide = row.wide(ins)
        start_stride = 1 if row.mid_kernel else row.stride
        self.has_skip = residual and row.stride == 1 and ins == row.channels
        self.dw_start = _depthwise(ins, row.start_kernel, start_stride)
        self.pw_exp = ConvNorm(convolution(ins, wide, kernel=1))
        self.dw_mid = _depthwise(wide, row.mid_kernel, row.stride)
        self.pw_proj = ConvNorm(convolution(wide, row.channels, kernel=1))
        self.layer_scale = LayerScale(row.channels) if residual else None

    def forward(self, x: Maps) -> NewMaps:
        """The block, its input added where shapes allow."""
        made = x if self.dw_start is None else self.dw_start(x)
        made = gelu(self.pw_exp(made))
        if self.dw_mid is not None:
            made = gelu(self.dw_mid(made))
        made = self.pw_proj(made)
        if self.layer_scale is not None:
            made = self.layer_scale(made)
        return x + made if self.has_skip else made


def _depthwise(channels: int, kernel: int, stride: int) -> ConvNorm | None:
    if not kernel:
        return None
    return ConvNorm(convolution(channels, channels, kernel=kernel, stride=stride, groups=channels))
