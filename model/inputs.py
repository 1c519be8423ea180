# SPDX-License-Identifier: Apache-2.0
"""What crosses the border of the model's forward pass. The model knows no labels; the trainer knows no pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.errors import InputError
from model.layers.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures as the vision tower takes them: red, green, blue in [0, 1].

    Raises:
        InputError: The tensor is of another shape or kind.
    """

    pixels: Float[Tensor, "images 3 height width_px"]

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if len(shape) != 4 or shape[1] != 3 or 0 in shape or not self.pixels.is_floating_point():
            raise InputError(
                f"inputs: images are {self.pixels.dtype} of shape {shape}; they must be numbers in [0, 1] of shape"
                " (images, 3, height, width), all images of a batch in one axis"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device."""
        return Images(pixels=self.pixels.to(device))


@dataclass(frozen=True, kw_only=True)
class Audio:
    """Clips of sound as the audio tower takes them: log-mel frames, ``mask`` True at real ones.

    Real frames come first in each clip; what stands behind them is never looked at.

    Raises:
        InputError: The tensors are of other shapes or kinds, or a clip has no frame.
    """

    frames: Float[Tensor, "clips frames mels"]
    mask: Bool[Tensor, "clips frames"]

    def __post_init__(self) -> None:
        if self.frames.ndim != 3 or self.mask.shape != self.frames.shape[:2] or not self.frames.is_floating_point():
            raise InputError(
                f"inputs: audio frames are {self.frames.dtype} of shape {tuple(self.frames.shape)} and their mask has"
                f" shape {tuple(self.mask.shape)}; they must be (clips, frames, mels) and (clips, frames)"
            )
        if self.mask.dtype != torch.bool or self.mask.numel() == 0:
            raise InputError(
                f"inputs: the mask of the audio frames is {self.mask.dtype} of shape {tuple(self.mask.shape)};"
                " it must be torch.bool, True at real frames, and not empty"
            )

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def of(cls, clips: Sequence[Float[Tensor, "_ mels"]]) -> Audio:
        """Clips of different lengths side by side, zeros behind the shorter ones."""
        if not clips or not all(len(clip) for clip in clips):
            raise InputError("inputs: a clip of audio has no frames; every clip needs at least one")
        frames = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
        lengths = torch.tensor([len(clip) for clip in clips])
        return cls(frames=frames, mask=torch.arange(frames.shape[1]) < lengths[:, None])

    def to(self, device: torch.device | str) -> Audio:
        """The same clips on another device."""
        return Audio(frames=self.frames.to(device), mask=self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class SoftTokens:
    """What a tower makes of its items, before it is brought to the text's dimension; ``mask`` True at real ones.

    Raises:
        InputError: The tensors are of other shapes or kinds.
    """

    features: Float[Tensor, "items tokens channels"]
    mask: Bool[Tensor, "items tokens"]

    def __post_init__(self) -> None:
        shape, kind = tuple(self.features.shape), self.features.dtype
        if len(shape) != 3 or 0 in shape or self.mask.shape != shape[:2] or self.mask.dtype != torch.bool:
            raise InputError(
                f"inputs: soft tokens are {kind} of shape {shape} and their mask {self.mask.dtype} of shape"
                f" {tuple(self.mask.shape)}; they must be (items, tokens, channels) and (items, tokens) of torch.bool"
            )

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> SoftTokens:
        """The same soft tokens on another device."""
        return SoftTokens(features=self.features.to(device), mask=self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One batch of token sequences, and the media whose placeholders stand in them.

    ``mask`` is True at real tokens and False at padding, which may stand on either side. Images and clips
    lie in the order of their runs of placeholders, row after row; either may have been through its tower.

    Raises:
        InputError: The two tensors do not have the same two axes, are empty, or of the wrong kind.
    """

    ids: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    images: Images | SoftTokens | None = None
    audio: Audio | SoftTokens | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.mask.shape != self.ids.shape:
            raise InputError(
                f"inputs: ids have shape {tuple(self.ids.shape)} and mask {tuple(self.mask.shape)};"
                " both must be (batch, seq)"
            )
        if self.ids.numel() == 0 or self.ids.is_floating_point():
            raise InputError(
                f"inputs: ids are {self.ids.dtype} of shape {tuple(self.ids.shape)};"
                " at least one whole number is needed"
            )
        if self.mask.dtype != torch.bool:
            raise InputError(f"inputs: mask is {self.mask.dtype}; it must be torch.bool, True at real tokens")

    @classmethod
    def of(cls, ids: Int[Tensor, "batch seq"]) -> Inputs:
        """Sequences without padding."""
        return cls(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))

    def to(self, device: torch.device | str) -> Inputs:
        """The same inputs on another device."""
        return dataclasses.replace(
            self,
            ids=self.ids.to(device),
            mask=self.mask.to(device),
            images=None if self.images is None else self.images.to(device),
            audio=None if self.audio is None else self.audio.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the model says: soft-capped scores in float32, and the cache if one was asked for."""

    logits: Float[Tensor, "batch seq vocab"]
    cache: KVCache | None = None
