# SPDX-License-Identifier: Apache-2.0
"""Two strided convolutions that make one vector of every few log-mel frames.

Each looks ahead, never back: it reads ``kernel - 1`` frames beyond its own, and zeros beyond the clip's
end. Padding is therefore set to zero before each of them, so that a clip's vectors are the ones it
would have alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.audio.sizes import FREQUENCY_PADDING, subsample_channels, subsampled_features
from model.tower_config import AudioConfig


class CumulativeGroupNorm(nn.Module):
    """Scale by the statistics of everything up to and including each frame, all channels together; no bias.

    The mean is the running one. The variance is not that of the frames so far around it: each frame
    deviates from the mean as it was *then*, and these squares are averaged.

    Source: Gemma 3n's audio encoder, in float32 whatever the model's dtype.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "clips channels frames mels"]) -> Float[Tensor, "clips channels frames mels"]:
        """Normalise each frame; later frames, padding among them, change nothing."""
        wide = x.float()
        per_frame = wide.shape[1] * wide.shape[3]
        seen = per_frame * torch.arange(1, wide.shape[2] + 1, device=x.device)[:, None]  # frames 1
        centred = wide - wide.sum((1, 3), keepdim=True).cumsum(2) / seen
        variance = centred.square().sum((1, 3), keepdim=True).cumsum(2) / seen
        scale = self.weight.float()[:, None, None]
        return (centred * (variance + self.eps).rsqrt() * scale).type_as(x)


class SubSampleBlock(nn.Module):
    """One strided convolution, its norm and a ReLU."""

    def __init__(self, config: AudioConfig, index: int) -> None:
        super().__init__()
        kernel, stride = config.sscp_conv_kernel_size[index], config.sscp_conv_stride_size[index]
        inputs, outputs = subsample_channels(config, index)
        self.look_ahead, self.stride = kernel[0] - 1, stride[0]
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, bias=False)
        self.norm = CumulativeGroupNorm(outputs, config.sscp_conv_group_norm_eps)

    def forward(
        self, x: Float[Tensor, "clips channels_in frames_in mels_in"], real: Bool[Tensor, "clips frames_in"]
    ) -> Float[Tensor, "clips channels frames mels"]:
        """One output per ``stride`` frames, the last one begun counting too; zero where ``real`` ends."""
        frequency = (FREQUENCY_PADDING, FREQUENCY_PADDING)
        convolved = self.conv(F.pad(x, (*frequency, 0, self.look_ahead)))
        return F.relu(self.norm(convolved)).masked_fill(~real[:, None, :: self.stride, None], 0.0)


class SubSample(nn.Module):
    """Log-mel frames to the conformer's vectors.

    Raises:
        ConfigError: Kernels, strides or channels that leave nothing of a frame.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        features = subsampled_features(config)
        self.conv_0 = SubSampleBlock(config, 0)
        self.conv_1 = SubSampleBlock(config, 1)
        self.stride = self.conv_0.stride * self.conv_1.stride  # frames per vector
        self.input_proj_linear = nn.Linear(features, config.hidden_size, bias=False)

    def forward(
        self, frames: Float[Tensor, "clips frames mels"], real: Bool[Tensor, "clips frames"]
    ) -> Float[Tensor, "clips vectors dim"]:
        """Vectors of every ``stride`` frames, zero where ``real`` ends."""
        # Chosen, not multiplied: what stands in the padding may be anything, NaN included.
        x = frames.masked_fill(~real[..., None], 0.0).to(self.conv_0.conv.weight.dtype)[:, None]
        x = self.conv_1(self.conv_0(x, real), real[:, :: self.conv_0.stride])  # clips channels vectors mels
        return self.input_proj_linear(x.permute(0, 2, 3, 1).flatten(2))
