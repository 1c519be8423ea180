# SPDX-License-Identifier: Apache-2.0
"""Token tables whose rows are scaled up when read, and what brings a medium into the text's dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.layers.norm import RMSNorm, rms_norm


class ScaledEmbedding(nn.Embedding):
    """An embedding times a constant. The padding row is read like any other but gets no gradient from here."""

    def __init__(self, rows: int, dim: int, *, padding_row: int, scale: float) -> None:
        super().__init__(rows, dim, padding_idx=padding_row)
        self.scale = scale

    def forward(self, input: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:  # noqa: A002 - torch's name
        """Rows of these ids, scaled by the constant as the table's dtype rounds it (√2048 is 45.25 in bfloat16)."""
        scale = torch.tensor(self.scale, dtype=self.weight.dtype, device=self.weight.device)
        return F.embedding(input, self.weight, self.padding_idx) * scale


class MediaEmbedder(nn.Module):
    """A medium in the text's dimension: ids of its own small vocabulary, or a tower's soft tokens.

    Unlike those of the text, neither is scaled up; both end in a norm without a scale.

    Args:
        rows: Ids of the medium's vocabulary.
        offset: The first of them.
        channels: Dimension of the tower's soft tokens.
        dim: Dimension of the text.
        eps: Of all norms.
    """

    def __init__(self, rows: int, offset: int, channels: int, dim: int, *, eps: float) -> None:
        super().__init__()
        self.offset = offset
        self.eps = eps
        self.embedding = nn.Embedding(rows, channels)
        self.hard_embedding_norm = RMSNorm(channels, eps)
        self.soft_embedding_norm = RMSNorm(channels, eps)
        self.embedding_projection = nn.Linear(channels, dim, bias=False)

    def hard(self, ids: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes dim"]:
        """Embeddings of ids of the medium's vocabulary: delimiters, and what fills a run that is too long."""
        return self.project(self.hard_embedding_norm(self.embedding(ids - self.offset)))

    def soft(self, features: Float[Tensor, "items tokens channels"]) -> Float[Tensor, "items tokens dim"]:
        """Embeddings of soft tokens."""
        return self.project(self.soft_embedding_norm(features))

    def project(self, normed: Float[Tensor, "*axes channels"]) -> Float[Tensor, "*axes dim"]:
        """Into the text's dimension, at a root mean square of one."""
        return rms_norm(self.embedding_projection(normed), self.eps)
