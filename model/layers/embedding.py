# SPDX-License-Identifier: Apache-2.0
"""Token tables whose rows are scaled up when read, and what brings a medium into the text's dimension."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.layers.norm import RMSNorm, rms_norm


class TablePlacement(StrEnum):
    """Where the table of per-layer embeddings lies; away from the device it cannot be trained."""

    device = "device"  # with all other weights
    host = "host"  # in the host's memory
    mmap = "mmap"  # in the checkpoint's file, of which only what is read comes into memory


class ScaledEmbedding(nn.Embedding):
    """An embedding times a constant. The padding row is read like any other but gets no gradient from here."""

    def __init__(self, rows: int, dim: int, *, padding_row: int, scale: float) -> None:
        super().__init__(rows, dim, padding_idx=padding_row)
        self.scale = scale

    def forward(self, input: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:  # noqa: A002 - torch's name
        """Rows of these ids, scaled by the constant as the table's dtype rounds it (√2048 is 45.25 in bfloat16)."""
        scale = torch.tensor(self.scale, dtype=self.weight.dtype, device=self.weight.device)
        return F.embedding(input, self.weight, self.padding_idx) * scale


@dataclass(frozen=True)
class TableRows:
    """Rows of a table, each that is needed once, and which of them stands at each token."""

    rows: Float[Tensor, "distinct columns"]
    places: Int[Tensor, "batch seq"]

    def to(self, device: torch.device | str) -> TableRows:
        """The same on another device; out of pinned memory without waiting for it."""
        pinned = self.rows.is_pinned()
        return TableRows(self.rows.to(device, non_blocking=pinned), self.places.to(device))


@runtime_checkable
class RowSource(Protocol):
    """Where the rows of a table lie, if not on the model's device."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def read(self, ids: Int[Tensor, " ids"], into: Float[Tensor, "ids columns"]) -> None:
        """Put the rows of these ids, in their order, into a tensor on the CPU, in its dtype."""
        ...


@dataclass(frozen=True)
class RowsInMemory:
    """A table in the host's memory."""

    table: Float[Tensor, "rows columns"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.table.shape
        return rows, columns

    def read(self, ids: Int[Tensor, " ids"], into: Float[Tensor, "ids columns"]) -> None:
        """Copy them."""
        if into.dtype == self.table.dtype:
            torch.index_select(self.table, 0, ids, out=into)
        else:
            into.copy_(self.table[ids])


class HostTable(nn.Module):
    """What a ``ScaledEmbedding`` gives, of a table that stays off the device and is never trained.

    Only the rows of the ids at hand are brought there. The table is no parameter, so nothing that moves, trains or
    counts parameters finds it; ``gather`` may be called ahead, by other threads.

    Args:
        source: Where the rows lie.
        dtype: Of the model: rows are converted to it first, as the whole table would have been.
        scale: What rows are multiplied by when read.
        pinned: Whether rows are gathered into memory that an accelerator can fetch by itself.
    """

    def __init__(self, source: RowSource, *, dtype: torch.dtype, scale: float, pinned: bool) -> None:
        super().__init__()
        self.source = source
        self.dtype = dtype
        self.scale = scale
        self.pinned = pinned

    @property
    def num_entries(self) -> int:
        """What would be counted as parameters, were it one."""
        rows, columns = self.source.shape
        return rows * columns

    def gather(self, ids: Int[Tensor, "batch seq"]) -> TableRows:
        """The rows of these ids, on the CPU; ids beyond the table read row 0."""
        rows, columns = self.source.shape
        ids = ids.cpu()
        distinct, places = torch.where(ids < rows, ids, 0).unique(return_inverse=True)
        gathered = torch.empty(len(distinct), columns, dtype=self.dtype, pin_memory=self.pinned)
        self.source.read(distinct, gathered)
        return TableRows(gathered, places)

    def forward(
        self, ids: Int[Tensor, "batch seq"], gathered: TableRows | None = None
    ) -> Float[Tensor, "batch seq columns"]:
        """Rows of these ids, scaled, on the ids' device; those gathered before, if they have been."""
        found = (self.gather(ids) if gathered is None else gathered).to(ids.device)
        scale = torch.tensor(self.scale, dtype=self.dtype, device=ids.device)
        return F.embedding(found.places, found.rows) * scale


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
