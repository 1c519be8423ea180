# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: angles in float32 from positions, with one base per layer type.

There is no table in the module, so no cast of the model can touch the angles: at position 32767 a
bfloat16 frequency would be wrong by many turns. Source: RoFormer, arXiv 2104.09864 (half-split form).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """Cosine and sine of every position's angles; one axis entry per pair of head channels."""

    cos: Float[Tensor, "batch seq half"]
    sin: Float[Tensor, "batch seq half"]

    @classmethod
    def at(cls, positions: Int[Tensor, "batch seq"], *, head_dim: int, base: float, dtype: torch.dtype) -> Rotary:
        """Rotations at ``positions`` (tokens from the start), computed in float32 and given in ``dtype``."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
        angles = positions[..., None].float() * (1.0 / base**exponents)
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def rotate(self, x: Float[Tensor, "batch seq heads head_dim"]) -> Float[Tensor, "batch seq heads head_dim"]:
        """Turn each pair (channel i, channel i + head_dim/2) by its angle."""
        cos, sin = self.cos[:, :, None], self.sin[:, :, None]
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
