# SPDX-License-Identifier: Apache-2.0
"""The audio tower: log-mel frames to soft tokens, each clip as if it were alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.audio.attention import Surroundings
from model.audio.conformer import ConformerBlock
from model.audio.sizes import check_even
from model.audio.subsample import SubSample
from model.errors import InputError
from model.inputs import SoftTokens, has_padding_before_frames
from model.recompute import recomputed
from model.tower_config import AudioConfig


class AudioTower(nn.Module):
    """Sub-sampling convolutions, conformer blocks, and every few of their outputs as soft tokens.

    A clip's soft tokens depend neither on its batch-mates nor on how far it is padded, nor with what.
    (The reference's convolutions read the padding; for one clip without any, both compute the same.)

    ``recompute`` trades time for memory: activations inside a block are not kept for the backward
    pass but made again in it, by the non-reentrant method.

    Raises:
        ConfigError: Sizes that do not fit each other.

    Source: transformers' ``Gemma3nAudioEncoder``, after the Universal Speech Model (https://arxiv.org/abs/2303.01037).
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        check_even(config)
        self.config = config
        self.recompute = False
        self.subsample_conv_projection = SubSample(config)
        self.conformer = nn.ModuleList(ConformerBlock(config) for _ in range(config.conf_num_hidden_layers))

    def forward(self, frames: Float[Tensor, "clips frames mels"], mask: Bool[Tensor, "clips frames"]) -> SoftTokens:
        """Soft tokens of clips, one per 16 frames begun in the published shape; zeros behind each clip's own.

        Args:
            frames: Log-mel frames; what stands behind a clip's last real frame is not looked at.
            mask: True at real frames, which come first.

        Raises:
            InputError: Frames of another size, or padding before or between real frames.
        """
        if frames.shape[-1] != self.config.input_feat_size:
            raise InputError(
                f"audio tower: frames have {frames.shape[-1]} mels, but it takes {self.config.input_feat_size}"
                " (input_feat_size); read the audio with this model's processor"
            )
        if mask.device.type == "cpu":  # elsewhere a look at the values would stop the device's queue
            check_real_frames_come_first(mask)
        x = self.subsample_conv_projection(frames, mask)
        real = mask[:, :: self.subsample_conv_projection.stride]
        surroundings = Surroundings.of(real, self.config)
        for block in self.conformer:
            x = self.run_block(block, x, surroundings)
        kept = slice(None, None, self.config.conf_reduction_factor)
        x, real = x[:, kept], real[:, kept]
        return SoftTokens(features=x.masked_fill(~real[..., None], 0.0), mask=real)

    def run_block(self, block: nn.Module, x: Tensor, surroundings: Surroundings) -> Tensor:
        """One block, its activations kept or made again in the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return recomputed(block, x, surroundings)
        return block(x, surroundings)


def check_real_frames_come_first(mask: Bool[Tensor, "clips frames"]) -> None:
    """Raise InputError for a clip with padding before a real frame."""
    broken = has_padding_before_frames(mask)
    if broken.any():
        raise InputError(
            f"audio tower: clip {int(broken.int().argmax())} has padding before a real frame;"
            " real frames must come first, padding behind them (model.inputs.Audio.of does it)"
        )
