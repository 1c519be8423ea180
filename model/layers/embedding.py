# SPDX-License-Identifier: Apache-2.0
"""Token tables whose rows are scaled up when read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class ScaledEmbedding(nn.Embedding):
    """An embedding times a constant. The padding row is read like any other but gets no gradient from here."""

    def __init__(self, rows: int, dim: int, *, padding_row: int, scale: float) -> None:
        super().__init__(rows, dim, padding_idx=padding_row)
        self.scale = scale

    def forward(self, input: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:  # noqa: A002 - torch's name
        """Rows of these ids, scaled by the constant as the table's dtype rounds it (√2048 is 45.25 in bfloat16)."""
        scale = torch.tensor(self.scale, dtype=self.weight.dtype, device=self.weight.device)
        return F.embedding(input, self.weight, self.padding_idx) * scale
