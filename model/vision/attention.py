# SPDX-License-Identifier: Apache-2.0
"""Mobile multi-query attention over the places of a picture.

All heads share one key and one value per place, so heads are nothing but further queries: they are laid
out along the query axis, and a plain one-head attention does the rest.

Source: MobileNetV4, arXiv:2404.10518, section 4; timm for the names.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.vision.blocks import NORM_EPS, LayerScale, Maps, convolution
from model.vision.norm import ChannelNorm
from model.vision.stages import AttentionRow


class MultiQueryAttention(nn.Module):
    """Attention whose keys and values come from a coarser grid than its queries where ``kv_stride`` > 1."""

    def __init__(self, channels: int, row: AttentionRow) -> None:
        super().__init__()
        self.head_dim, query_dim = row.head_dim, row.query_channels
        self.query = nn.Sequential(OrderedDict(proj=convolution(channels, query_dim, kernel=1)))
        self.key = _coarsened(channels, row)
        self.value = _coarsened(channels, row)
        self.output = nn.Sequential(OrderedDict(proj=convolution(query_dim, row.channels, kernel=1)))

    def forward(self, x: Maps) -> Maps:
        """Every place looks at every place of the (coarser) grid."""
        images, _, height, width = x.shape
        queries = _places(self.query(x)).reshape(images, 1, -1, self.head_dim)  # images 1 (places heads) head_dim
        keys, values = _places(self.key(x))[:, None], _places(self.value(x))[:, None]
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.output(attended.reshape(images, height, width, -1).permute(0, 3, 1, 2))


class MobileAttention(nn.Module):
    """Norm, attention, scale, and the input added."""

    def __init__(self, ins: int, row: AttentionRow) -> None:
        super().__init__()
        self.has_skip = ins == row.channels
        self.norm = ChannelNorm(ins, NORM_EPS)
        self.attn = MultiQueryAttention(ins, row)
        self.layer_scale = LayerScale(row.channels)

    def forward(self, x: Maps) -> Float[Tensor, "images new_channels height width_px"]:
        """The block; the grid stays."""
        made = self.layer_scale(self.attn(self.norm(x)))
        return x + made if self.has_skip else made


def _coarsened(channels: int, row: AttentionRow) -> nn.Sequential:
    """The way to keys or to values."""
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    if row.kv_stride > 1:
        steps["down_conv"] = convolution(channels, channels, kernel=row.kernel, stride=row.kv_stride, groups=channels)
        steps["norm"] = ChannelNorm(channels, NORM_EPS)
    steps["proj"] = convolution(channels, row.head_dim, kernel=1)
    return nn.Sequential(steps)


def _places(x: Maps) -> Float[Tensor, "images places channels"]:
    """One vector per place, row after row; free of a copy when channels lie last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
