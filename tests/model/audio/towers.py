# SPDX-License-Identifier: Apache-2.0
"""Audio towers of random weights, and random clips for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from model.audio.tower import AudioTower
from model.tower_config import AudioConfig

TINY_AUDIO = AudioConfig(
    hidden_size=32,
    input_feat_size=16,
    conf_num_attention_heads=4,
    conf_num_hidden_layers=3,
    sscp_conv_channel_size=(8, 6),
)


def tiny_audio(**changes: Any) -> AudioConfig:
    """The tiny shape, with some fields changed."""
    return dataclasses.replace(TINY_AUDIO, **changes)


@torch.no_grad()
def random_tower(config: AudioConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> AudioTower:
    """A tower of random weights, none of them special: at their initial values many mistakes would not show."""
    with torch.device("meta"):
        tower = AudioTower(config)
    tower.to_empty(device="cpu").to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in tower.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1.0 + 0.3 * noise if parameter.ndim == 1 else noise * parameter[0].numel() ** -0.5)
    return tower


def random_clip(config: AudioConfig, frames: int, *, seed: int = 0) -> Tensor:
    """Something of the size of a log-mel spectrogram, "frames mels"."""
    generator = torch.Generator().manual_seed(1000 * frames + seed)
    return torch.randn(frames, config.input_feat_size, generator=generator) * 3.0 - 4.0
