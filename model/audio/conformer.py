# SPDX-License-Identifier: Apache-2.0
"""The conformer block: half a feed-forward network, attention, a short convolution, the other half.

Source: Conformer (https://arxiv.org/abs/2005.08100) as Gemma 3n has it: a norm before and after each part
but the convolution, and values clipped to a bound that only diverging weights reach.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.audio.attention import LocalAttention, Surroundings
from model.audio.sizes import feed_forward_width
from model.layers.norm import RMSNorm
from model.tower_config import AudioConfig

NORM_EPS = 1e-6  # everywhere but in the convolution, whatever the config says


def clipped(x: Float[Tensor, "*axes"], bound: float) -> Float[Tensor, "*axes"]:
    """``x`` within ±``bound``, or within what its dtype can hold."""
    bound = min(bound, torch.finfo(x.dtype).max)
    return x.clamp(-bound, bound)


class FeedForward(nn.Module):
    """A feed-forward network of which a share (``conf_residual_weight``) is added."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        dim, width = config.hidden_size, feed_forward_width(config)
        self.bound, self.share = config.gradient_clipping, config.conf_residual_weight
        self.pre_layer_norm = RMSNorm(dim, NORM_EPS)
        self.ffw_layer_1 = nn.Linear(dim, width, bias=False)
        self.ffw_layer_2 = nn.Linear(width, dim, bias=False)
        self.post_layer_norm = RMSNorm(dim, NORM_EPS)

    def forward(self, x: Float[Tensor, "clips frames dim"]) -> Float[Tensor, "clips frames dim"]:
        """``x`` and a share of the network's normed output."""
        normed = self.pre_layer_norm(clipped(x, self.bound))
        made = self.ffw_layer_2(F.silu(self.ffw_layer_1(normed)))
        return x + self.post_layer_norm(clipped(made, self.bound)) * self.share


class ConformerAttention(nn.Module):
    """Local attention between its norms, with the output projection."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.bound = config.gradient_clipping
        self.pre_attn_norm = RMSNorm(dim, NORM_EPS)
        self.attn = LocalAttention(config)
        self.post = nn.Linear(dim, dim, bias=False)
        self.post_norm = RMSNorm(dim, NORM_EPS)

    def forward(
        self, x: Float[Tensor, "clips frames dim"], surroundings: Surroundings
    ) -> Float[Tensor, "clips frames dim"]:
        """``x`` and what attention adds to it."""
        attended = self.attn(self.pre_attn_norm(clipped(x, self.bound)), surroundings)
        return x + self.post_norm(clipped(self.post(attended), self.bound))


class LightConvolution(nn.Module):
    """A gated causal convolution of each channel by itself."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        dim, kernel = config.hidden_size, config.conf_conv_kernel_size
        self.bound = config.gradient_clipping
        self.pre_layer_norm = RMSNorm(dim, config.rms_norm_eps)
        self.linear_start = nn.Linear(dim, 2 * dim, bias=False)
        self.depthwise_conv1d = nn.Conv1d(dim, dim, kernel, groups=dim, bias=False)
        self.conv_norm = RMSNorm(dim, config.rms_norm_eps)
        self.linear_end = nn.Linear(dim, dim, bias=False)
        self.look_back = kernel - 1

    def forward(self, x: Float[Tensor, "clips frames dim"]) -> Float[Tensor, "clips frames dim"]:
        """``x`` and what the convolution adds to it."""
        gated = F.glu(self.linear_start(self.pre_layer_norm(x)), dim=-1)
        convolved = self.depthwise_conv1d(F.pad(gated.transpose(1, 2), (self.look_back, 0))).transpose(1, 2)
        return x + self.linear_end(F.silu(self.conv_norm(clipped(convolved, self.bound))))


class ConformerBlock(nn.Module):
    """One layer of the tower.

    Padding behind a clip's frames changes none of them, and gets no gradient if its outputs get none:
    attention does not see it, and the convolution only looks back.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.bound = config.gradient_clipping
        self.ffw_layer_start = FeedForward(config)
        self.attention = ConformerAttention(config)
        self.lconv1d = LightConvolution(config)
        self.ffw_layer_end = FeedForward(config)
        self.norm = RMSNorm(config.hidden_size, NORM_EPS)

    def forward(
        self, x: Float[Tensor, "clips frames dim"], surroundings: Surroundings
    ) -> Float[Tensor, "clips frames dim"]:
        """The next layer's input."""
        attended = self.attention(self.ffw_layer_start(x), surroundings)
        return self.norm(clipped(self.ffw_layer_end(self.lconv1d(attended)), self.bound))
