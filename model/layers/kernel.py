# SPDX-License-Identifier: Apache-2.0
"""How attention is computed once it is known who may attend to whom. All ways give the same, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

WINDOWS_IN_ONE = 4  # windows that a document may be long for its local attention to be computed at once


class AttentionKernel(StrEnum):
    """What computes attention where nothing is decoded step by step."""

    auto = "auto"  # documents
    dense = "dense"  # one table of who sees whom for the whole batch: memory and time grow with the square of its width
    documents = "documents"  # each document by itself; dense where padding stands before tokens
    flex = "flex"  # torch's flex attention, compiled on a GPU: for packs of very many short documents

    @property
    def used(self) -> AttentionKernel:
        """What this is for rows that are padded behind their tokens, as those of training are."""
        return AttentionKernel.documents if self is AttentionKernel.auto else self


@runtime_checkable  # for the tests, which look at every argument
class Kernel(Protocol):
    """Attends from queries to keys and values. Scores are not divided by √head_dim: the query norm's weight is."""

    def __call__(
        self,
        queries: Float[Tensor, "batch heads queries head_dim"],
        keys: Float[Tensor, "batch kv_heads keys head_dim"],
        values: Float[Tensor, "batch kv_heads keys head_dim"],
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """What each query takes of the values that it may attend to."""
        ...


@dataclass(frozen=True)
class DenseKernel:
    """By a mask that is written out."""

    mask: Bool[Tensor, "batch 1 queries keys"]

    def __call__(
        self,
        queries: Float[Tensor, "batch heads queries head_dim"],
        keys: Float[Tensor, "batch kv_heads keys head_dim"],
        values: Float[Tensor, "batch kv_heads keys head_dim"],
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """What each query takes of the values that the mask lets it attend to."""
        return masked(queries, keys, values, self.mask)


@dataclass(frozen=True)
class DocumentKernel:
    """Document by document: inside one, a token sees those before it, as far as the window reaches, and no mask.

    Padding may stand behind the tokens of a document only: what it sees is nobody's concern, and nobody sees it.

    Args:
        lengths: Of the documents of each row, padding included.
        window: Tokens that one sees, itself included; None if all.
    """

    lengths: Sequence[Sequence[int]]
    window: int | None

    def __call__(
        self,
        queries: Float[Tensor, "batch heads seq head_dim"],
        keys: Float[Tensor, "batch kv_heads seq head_dim"],
        values: Float[Tensor, "batch kv_heads seq head_dim"],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        """What each token takes of the values of its own document."""
        if all(len(lengths) == 1 for lengths in self.lengths):
            return within(queries, keys, values, self.window)
        flat = [length for lengths in self.lengths for length in lengths]
        # All rows as one, so that the documents are parts of one split: its gradient is put together once.
        parts = (each.transpose(1, 2).flatten(0, 1).split(flat) for each in (queries, keys, values))  # tokens heads ·
        attended = [
            within(*(part.transpose(0, 1)[None] for part in (query, key, value)), window=self.window)[0].transpose(0, 1)
            for query, key, value in zip(*parts, strict=True)
        ]
        return torch.cat(attended).unflatten(0, (len(queries), -1)).transpose(1, 2)


def within(
    queries: Float[Tensor, "batch heads seq head_dim"],
    keys: Float[Tensor, "batch kv_heads seq head_dim"],
    values: Float[Tensor, "batch kv_heads seq head_dim"],
    window: int | None,
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Attention to what came before inside one document, as far as the window reaches."""
    length = queries.shape[2]
    if window is None or length <= window:
        return causal(queries, keys, values)
    # One block up to there: it costs twice as much at most, and rounds like a mask of the whole batch.
    size = length if length <= WINDOWS_IN_ONE * window else window
    blocks = []
    for start in range(0, length, size):
        end, first = min(start + size, length), max(0, start - window + 1)
        mine = torch.arange(start, end, device=queries.device)[:, None]
        others = torch.arange(first, end, device=queries.device)
        reached = (others <= mine) & (others > mine - window)
        blocks.append(
            masked(queries[:, :, start:end], keys[:, :, first:end], values[:, :, first:end], reached[None, None])
        )
    return torch.cat(blocks, dim=2)


def causal(
    queries: Float[Tensor, "batch heads seq head_dim"],
    keys: Float[Tensor, "batch kv_heads seq head_dim"],
    values: Float[Tensor, "batch kv_heads seq head_dim"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Attention to oneself and all before."""
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=1.0, enable_gqa=True)


def masked(
    queries: Float[Tensor, "batch heads queries head_dim"],
    keys: Float[Tensor, "batch kv_heads keys head_dim"],
    values: Float[Tensor, "batch kv_heads keys head_dim"],
    mask: Bool[Tensor, "some 1 queries keys"],
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Attention to what the mask allows."""
    if queries.device.type == "cuda":
        # There, the kernels that take a mask and do not write all scores down want as many heads of each.
        repeats = queries.shape[1] // keys.shape[1]
        keys, values = (each.repeat_interleave(repeats, dim=1) for each in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0, enable_gqa=True)


@dataclass(frozen=True)
class FlexKernel:
    """By flex attention, which leaves out the blocks of the table in which nobody sees anybody."""

    blocks: BlockMask

    @classmethod
    def of(
        cls,
        mask: Bool[Tensor, "batch seq"],
        window: int | None,
        *,
        documents: Int[Tensor, "batch seq"] | None = None,
    ) -> FlexKernel:
        """The same tokens see each other as in ``attention_mask`` where all tokens are queries."""
        batch, seq = mask.shape
        reach = seq if window is None else window
        own = torch.zeros_like(mask, dtype=torch.int64) if documents is None else documents

        create = compiled(create_block_mask) if mask.device.type == "cuda" else create_block_mask
        # An expression, not a function of its own: its arguments are counted, which the tests' checker would hide.
        blocks = create(
            lambda row, _, query, key: (
                ((key <= query) & (key > query - reach) & (own[row, key] == own[row, query]) & mask[row, key])
                | (key == query)
            ),
            batch, None, seq, seq, device=mask.device,
        )  # fmt: skip
        return cls(blocks)

    def __call__(
        self,
        queries: Float[Tensor, "batch heads seq head_dim"],
        keys: Float[Tensor, "batch kv_heads seq head_dim"],
        values: Float[Tensor, "batch kv_heads seq head_dim"],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        """What each token takes of the values that it may attend to."""
        attend = compiled(flex_attention) if queries.device.type == "cuda" else flex_attention
        return attend(queries, keys, values, block_mask=self.blocks, scale=1.0, enable_gqa=True)


@cache
def compiled(function: Callable) -> Callable:
    """A function compiled by torch: once, for batches of any width."""
    return torch.compile(function, dynamic=True)
