# SPDX-License-Identifier: Apache-2.0
"""What crosses the border of the model's forward pass. The model knows no labels; the trainer knows no pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.errors import InputError
from model.layers.embedding import TableRows
from model.layers.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures as the vision tower takes them: red, green, blue in [0, 1].

    Raises:
        InputError: The tensor is of another shape or kind, or (looked at on the CPU only) of another range.
    """

    pixels: Float[Tensor, "images 3 height width_px"]

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if len(shape) != 4 or shape[1] != 3 or 0 in shape or not self.pixels.is_floating_point():
            raise InputError(
                f"inputs: images are {self.pixels.dtype} of shape {shape}; they must be numbers in [0, 1] of shape"
                " (images, 3, height, width), all images of a batch in one axis"
            )
        if self.pixels.device.type == "cpu":  # elsewhere a look at the values would stop the device's queue
            low, high = (bound.item() for bound in self.pixels.detach().aminmax())
            if not (low >= 0 and high <= 1):  # so that NaN is refused too
                raise InputError(
                    f"inputs: the images' values reach from {low:g} to {high:g}; they must lie in [0, 1]:"
                    " divide bytes by 255, and leave mean and deviation alone"
                )

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device."""
        return Images(pixels=self.pixels.to(device))

    def at(self, places: Sequence[int]) -> Images:
        """The images at these places, in this order."""
        return Images(pixels=self.pixels[list(places)])


@dataclass(frozen=True, kw_only=True)
class Audio:
    """Clips of sound as the audio tower takes them: log-mel frames, ``mask`` True at real ones.

    Real frames come first in each clip; what stands behind them is never looked at.

    Raises:
        InputError: The tensors are of other shapes or kinds, a clip has no frame, or (looked at on the CPU
            only) a real frame holds what is no number.
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
        if self.frames.device.type == self.mask.device.type == "cpu":
            broken = (~self.frames.detach().isfinite().all(dim=2) & self.mask).any(dim=1)
            if bool(broken.any()):
                raise InputError(
                    f"inputs: audio clip {int(broken.int().argmax())} has real frames with NaN or infinity in them;"
                    " look at how its spectrum was made (the logarithm of zero?)"
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

    def at(self, places: Sequence[int]) -> Audio:
        """The clips at these places, in this order."""
        return Audio(frames=self.frames[list(places)], mask=self.mask[list(places)])


def has_padding_before_frames(mask: Bool[Tensor, "clips frames"]) -> Bool[Tensor, " clips"]:
    """Which clips break the rule that real frames come first."""
    return (mask[:, 1:] & ~mask[:, :-1]).any(dim=1)


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
        masked = self.mask.shape == shape[:2] and self.mask.dtype == torch.bool
        if len(shape) != 3 or 0 in shape or not kind.is_floating_point or not masked:
            raise InputError(
                f"inputs: soft tokens are {kind} of shape {shape} and their mask {self.mask.dtype} of shape"
                f" {tuple(self.mask.shape)}; they must be fractions (items, tokens, channels) and torch.bool"
                " (items, tokens)"
            )

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> SoftTokens:
        """The same soft tokens on another device."""
        return SoftTokens(features=self.features.to(device), mask=self.mask.to(device))

    def at(self, places: Sequence[int]) -> SoftTokens:
        """Those of the items at these places, in this order."""
        return SoftTokens(features=self.features[list(places)], mask=self.mask[list(places)])


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One batch of token sequences, and the media whose placeholders stand in them.

    ``mask`` is True at real tokens and False at padding, which may stand on either side. Images and clips
    lie in the order of their runs of placeholders, row after row; either may have been through its tower.

    ``documents``: which document of its row each token belongs to, counted from 0 and never falling along the row,
    where several share one: no token sees another's document, and each begins at position 0. None: a row is one.

    ``ids_below``: every id is known to be smaller; None if nobody has looked. Media's ids lie behind the text's,
    so a model that is told need not look itself, for which a device would have to finish all it has to do.

    ``document_lengths``: of each row's documents, the padding behind each included, so that they add up to the row;
    None if nobody has looked, or padding stands before a token of its document.

    ``per_layer_rows``: the tokens' rows of the per-layer table, gathered ahead where the table is not on the device.

    Raises:
        InputError: The two tensors do not have the same two axes, are empty, or of the wrong kind; the media
            are something else; or (looked at on the CPU only) an id is not below ``ids_below``.
    """

    ids: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    images: Images | SoftTokens | None = None
    audio: Audio | SoftTokens | None = None
    ids_below: int | None = None
    documents: Int[Tensor, "batch seq"] | None = None
    document_lengths: tuple[tuple[int, ...], ...] | None = None
    per_layer_rows: TableRows | None = None

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
        if self.documents is not None:
            check_documents(self.documents, self.ids)
        if self.per_layer_rows is not None and self.per_layer_rows.places.shape != self.ids.shape:
            raise InputError(
                "inputs: rows of the per-layer table were gathered for tokens of shape"
                f" {tuple(self.per_layer_rows.places.shape)}, but the ids have {tuple(self.ids.shape)}"
            )
        for name, given, kind in (("images", self.images, Images), ("audio", self.audio, Audio)):
            if not isinstance(given, kind | SoftTokens | None):
                raise InputError(
                    f"inputs: {name} are given as {type(given).__name__}; they must be {kind.__name__} or SoftTokens"
                    " (model.inputs), or None"
                )
        if self.ids_below is not None and self.ids.device.type == "cpu" and int(self.ids.max()) >= self.ids_below:
            raise InputError(
                f"inputs: ids reach to {int(self.ids.max())}, but are said to be below {self.ids_below} (ids_below);"
                " say None where they are not known"
            )

    @classmethod
    def of(cls, ids: Int[Tensor, "batch seq"], *, ids_below: int | None = None) -> Inputs:
        """Sequences without padding."""
        return cls(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), ids_below=ids_below)

    def may_hold(self, ids: range) -> bool:
        """Whether one of ``ids`` may be among those of the batch, as far as is known without a look at them."""
        return self.ids_below is None or ids.start < self.ids_below

    def known_lengths(self) -> tuple[tuple[int, ...], ...] | None:
        """``document_lengths``, found out where that does not stop a device's queue."""
        if self.document_lengths is not None or self.ids.device.type != "cpu":
            return self.document_lengths
        return lengths_of(self.mask, self.documents)

    def to(self, device: torch.device | str) -> Inputs:
        """The same inputs on another device; what a look at them tells is found out while they are still at hand."""
        below = self.ids_below
        if below is None and self.ids.device.type == "cpu":
            below = int(self.ids.max()) + 1
        return dataclasses.replace(
            self,
            ids_below=below,
            ids=self.ids.to(device),
            mask=self.mask.to(device),
            documents=None if self.documents is None else self.documents.to(device),
            document_lengths=self.known_lengths(),
            images=None if self.images is None else self.images.to(device),
            audio=None if self.audio is None else self.audio.to(device),
            per_layer_rows=None if self.per_layer_rows is None else self.per_layer_rows.to(device),
        )


def check_documents(documents: Int[Tensor, "batch seq"], ids: Int[Tensor, "batch seq"]) -> None:
    """Raise InputError for numbers of documents that belong to other tokens, or (on the CPU) fall along a row."""
    if documents.shape != ids.shape or documents.is_floating_point():
        raise InputError(
            f"inputs: documents are {documents.dtype} of shape {tuple(documents.shape)}; they must be whole numbers"
            f" of the ids' shape {tuple(ids.shape)}"
        )
    if documents.device.type == "cpu" and bool((documents.diff(dim=1) < 0).any()):
        raise InputError("inputs: the number of a document falls along a row; the tokens of one must lie together")


def lengths_of(
    mask: Bool[Tensor, "batch seq"], documents: Int[Tensor, "batch seq"] | None
) -> tuple[tuple[int, ...], ...] | None:
    """The lengths of each row's documents, the padding behind each included; None if some stands before a token."""
    begins = torch.zeros_like(mask)
    begins[:, 0] = True
    if documents is not None:
        begins[:, 1:] = documents.diff(dim=1) != 0
    if bool((mask[:, 1:] & ~mask[:, :-1] & ~begins[:, 1:]).any()):
        return None
    ends = [[*row.nonzero().flatten().tolist(), mask.shape[1]] for row in begins]
    return tuple(tuple(end - start for start, end in pairwise(row)) for row in ends)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the model says: soft-capped scores in float32, and the cache if one was asked for."""

    logits: Float[Tensor, "batch seq vocab"]
    cache: KVCache | None = None


@dataclass(frozen=True, kw_only=True)
class Read:
    """All that is needed to go on with what a sub-model has read: its hidden state at the last token, and the cache."""

    hidden: Float[Tensor, "batch dim"]
    cache: KVCache
