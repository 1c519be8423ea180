# SPDX-License-Identifier: Apache-2.0
"""What crosses the border of the model's forward pass. The model knows no labels; the trainer knows no pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.errors import InputError
from model.layers.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One batch of token sequences.

    ``mask`` is True at real tokens and False at padding, which may stand on either side.

    Raises:
        InputError: The two tensors do not have the same two axes, are empty, or of the wrong kind.
    """

    ids: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]

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
        return Inputs(ids=self.ids.to(device), mask=self.mask.to(device))


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the model says: soft-capped scores in float32, and the cache if one was asked for."""

    logits: Float[Tensor, "batch seq vocab"]
    cache: KVCache | None = None
