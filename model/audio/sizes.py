# SPDX-License-Identifier: Apache-2.0
"""Sizes inside the audio tower that its config gives only indirectly. The layers read them, and so does shapes.py."""

from __future__ import annotations

from model.errors import ConfigError
from model.tower_config import AudioConfig

FREQUENCY_PADDING = 1  # of the sub-sampling convolutions, on either side, whatever the kernel
WIDENING = 4  # of the feed-forward networks


def check_even(config: AudioConfig) -> None:
    """Raise ConfigError unless a vector can be half sines and half cosines of a distance."""
    if config.hidden_size % 2:
        raise ConfigError(
            f"audio_config: hidden_size is {config.hidden_size}; it must be even, half sines and half cosines"
        )


def head_dim(config: AudioConfig) -> int:
    """Entries of a vector that one attention head has."""
    return config.hidden_size // config.conf_num_attention_heads


def feed_forward_width(config: AudioConfig) -> int:
    """Neurons of each feed-forward network."""
    return WIDENING * config.hidden_size


def subsample_channels(config: AudioConfig, index: int) -> tuple[int, int]:
    """Channels into and out of a sub-sampling convolution; what is sub-sampled has one."""
    inputs, outputs = (1, *config.sscp_conv_channel_size)[index : index + 2]
    return inputs, outputs


def subsampled_features(config: AudioConfig) -> int:
    """Numbers that both convolutions leave of each of their frames, or ConfigError."""
    return config.sscp_conv_channel_size[-1] * remaining_mels(config)


def remaining_mels(config: AudioConfig) -> int:
    """How many frequencies both convolutions leave, or ConfigError."""
    mels = config.input_feat_size
    for kernel, stride in zip(config.sscp_conv_kernel_size, config.sscp_conv_stride_size, strict=True):
        mels = (mels + 2 * FREQUENCY_PADDING - kernel[1]) // stride[1] + 1
        if mels < 1:
            raise ConfigError(
                f"audio_config: sscp_conv_kernel_size {config.sscp_conv_kernel_size} is wider than what is left of"
                f" {config.input_feat_size} mels; use narrower kernels, smaller strides or more mels (input_feat_size)"
            )
    return mels
