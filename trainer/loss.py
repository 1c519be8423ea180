# SPDX-License-Identifier: Apache-2.0
"""The loss as a sum; what it is divided by is counted elsewhere, over the whole optimizer step.

A mean per micro-batch would weigh the tokens of a short answer more than those of a long one, and
differently for every batch size and number of processes.

Head, soft-cap and cross-entropy are one operation here, because the scores of a batch would be its largest tensor
by far: a vocabulary of 262,400 makes a megabyte of every token. They are made block by block, used, and forgotten.
While a block is at hand, its part of the gradient of the hidden states is taken too: with z = cap·tanh(s / cap) and
p = softmax(z), a token's gradient is Σ (p - y)(1 - (z / cap)²) times the head's rows. As in attention by blocks, p is
known only up to a factor of the row until the last block, and the factor comes out of the sum.

The backward pass therefore has nothing to compute again; it only scales. That holds for a head that is trained,
too: its gradient is as large as itself, but the loss is where a backward pass begins, so making it a moment earlier
costs no memory at the peak and saves a quarter of the multiplications.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainer.data.batch import IGNORED
from trainer.softcap import SoftCap

CHUNK_BYTES = 256 << 20  # 102 tokens at 262,400 entries: enough for full speed of the products on an accelerator
SCORE_BYTES = 10  # of memory for each: two numbers in float32 and one in half precision at most
# On a processor: few enough rows and columns for its cache, many enough that threads seldom wait for each other.
CACHE_ROWS, CACHE_BYTES = 1024, 32 << 20
ALIGNED = 64  # columns: products whose rows begin at odd addresses take half as long again


@dataclass(frozen=True)
class TokenScores:
    """Of every labelled position, in the order of the batch: its loss, the likeliest token and that one's probability.

    ``right`` is whether the likeliest token is the label.
    """

    losses: Float[Tensor, " labelled"]
    right: Bool[Tensor, " labelled"]
    likeliest: Int[Tensor, " labelled"]
    confidences: Float[Tensor, " labelled"]


def linear_cross_entropy_sum(
    hidden: Float[Tensor, "batch seq dim"],
    weight: Float[Tensor, "vocab dim"],
    labels: Int[Tensor, "batch seq"],
    *,
    softcap: float,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, ""]:
    """Cross-entropy in nats, in float32, summed over the positions that have a label; 0 if there is none.

    Scores are rounded as the model rounds them (``Gemma3n.head``); sums over the vocabulary, the gradient of the
    hidden states and that of the head are kept in float32 until the end. There are no second derivatives.

    Args:
        hidden: Hidden states after the final norm.
        weight: The head; a gradient is made for it only if it asks for one.
        labels: Already shifted, see ``Batch``.
        softcap: Scores are pressed into ± this.
        chunk_bytes: About the most memory that scores take at a time; those of one token fit in any case.
    """
    differentiated = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if differentiated:
        return SummedLoss.apply(hidden, weight, labels, softcap, chunk_bytes)
    # A prompt's tokens are often most of a batch; without a label nothing is computed for them.
    labelled = labels != IGNORED
    return chunked_loss(
        hidden[labelled], weight, labels[labelled], softcap=softcap, chunk_bytes=chunk_bytes,
        hidden_gradient=False, weight_gradient=False,
    ).loss  # fmt: skip


@torch.no_grad()
def token_scores(
    hidden: Float[Tensor, "batch seq dim"],
    weight: Float[Tensor, "vocab dim"],
    labels: Int[Tensor, "batch seq"],
    *,
    softcap: float,
    chunk_bytes: int = CHUNK_BYTES,
) -> TokenScores:
    """The loss of every labelled position and what greedy decoding would say there, how surely; for measuring.

    Args: as ``linear_cross_entropy_sum``.
    """
    labelled = labels != IGNORED
    rows, answers = hidden[labelled], labels[labelled]
    losses, confidences = [rows.new_empty(0, dtype=torch.float32)], [rows.new_empty(0, dtype=torch.float32)]
    found = [answers.new_empty(0)]
    cap = SoftCap.of(softcap, weight.dtype)
    size = BlockSize.of(len(rows), weight, chunk_bytes, whole_rows=False)
    for start in range(0, len(rows), size.rows):
        chunk = Chunk.of(rows[start : start + size.rows], answers[start : start + size.rows], cap)
        likeliest = torch.zeros_like(chunk.labels)
        for block in size.blocks(len(chunk.labels), weight):
            cap.press(chunk.hidden, block.head, out=block.pressed)
            top = block.pressed.max(dim=1)
            likeliest = torch.where(cap.scores(top.values) > chunk.top, top.indices + block.first, likeliest)
            chunk.add(block)
        losses.append(chunk.losses())
        found.append(likeliest)
        confidences.append(1 / chunk.total())  # sums are of exp(score - top)
    likeliest = torch.cat(found)
    return TokenScores(torch.cat(losses), likeliest == answers, likeliest, torch.cat(confidences))


class SummedLoss(torch.autograd.Function):
    """The loss and, in the same pass, its gradients; the way back scales them."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float, chunk_bytes: int) -> Tensor:  # noqa: D102
        labelled = labels != IGNORED
        made = chunked_loss(
            hidden[labelled], weight, labels[labelled], softcap=softcap, chunk_bytes=chunk_bytes,
            hidden_gradient=ctx.needs_input_grad[0], weight_gradient=ctx.needs_input_grad[1],
        )  # fmt: skip
        ctx.save_for_backward(labelled, made.of_hidden, made.of_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.scaled = False
        return made.loss

    @staticmethod
    def backward(ctx, outer: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102 # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # that is, create_graph=True
            raise RuntimeError("the loss has no second derivatives: its gradients are numbers without a history")
        if ctx.scaled:
            raise RuntimeError("the loss of a trained head can be gone back through only once; compute it anew")
        labelled, of_hidden, of_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        if of_hidden is not None:
            rows = (of_hidden * outer).to(hidden_dtype)
            of_hidden = rows.new_zeros(*labelled.shape, rows.shape[1])
            of_hidden[labelled] = rows
        if of_weight is not None:
            ctx.scaled = True
            of_weight = of_weight.mul_(outer).to(weight_dtype)  # in place: it is as large as the head
        return of_hidden, of_weight, None, None, None


@dataclass(frozen=True)
class LossAndGradients:
    """A summed loss with its gradients in float32, of those tensors that asked for one."""

    loss: Float[Tensor, ""]
    of_hidden: Float[Tensor, "labelled dim"] | None
    of_weight: Float[Tensor, "vocab dim"] | None


@dataclass(frozen=True)
class BlockSize:
    """How many tokens, and how many entries of the vocabulary, are scored at a time."""

    rows: int
    columns: int
    whole_rows: bool  # whether the scores of all blocks of a row are kept

    @classmethod
    def of(cls, tokens: int, weight: Tensor, chunk_bytes: int, *, whole_rows: bool) -> BlockSize:
        """Such that the scores fit ``chunk_bytes``."""
        vocab = len(weight)
        rows = max(1, min(tokens, chunk_bytes // (SCORE_BYTES * vocab)))
        # Half precision would round a row's gradient once per block, so there it is made in one piece.
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return cls(rows, vocab, whole_rows)
        room = min(chunk_bytes, CACHE_BYTES) // SCORE_BYTES
        if not whole_rows:
            rows = max(1, min(tokens, CACHE_ROWS, room))
        columns = max(1, min(vocab, room // rows))
        return cls(rows, columns - columns % ALIGNED if columns > ALIGNED else columns, whole_rows)

    def blocks(self, rows: int, weight: Tensor) -> Iterator[Block]:
        """The blocks of the vocabulary; they share memory, but for their scores if those are to be kept."""
        pressed = weight.new_empty(rows * self.columns)
        scores = weight.new_empty(rows * (len(weight) if self.whole_rows else self.columns), dtype=torch.float32)
        for first in range(0, len(weight), self.columns):
            head = weight[first : first + self.columns]
            shape, at = (rows, len(head)), rows * first if self.whole_rows else 0
            yield Block(
                first, head, pressed[: rows * len(head)].view(shape), scores[at : at + rows * len(head)].view(shape)
            )


@dataclass(frozen=True)
class Block:
    """Some entries of the vocabulary: the id of the first, their rows of the head, and memory for their scores.

    ``pressed`` is for the soft-cap's curve, ``powers`` for exp(score - top).
    """

    first: int
    head: Float[Tensor, "columns dim"]
    pressed: Float[Tensor, "rows columns"]
    powers: Float[Tensor, "rows columns"]


@dataclass
class Chunk:
    """Some tokens, and what is known of them after the blocks that were added.

    ``others`` is the sum of exp(score - top) over all entries but the label, whose score is apart: the difference
    of a confident token's probability and one would have few digits left. Scores are up to a constant, see ``SoftCap``.
    """

    hidden: Float[Tensor, "rows dim"]
    labels: Int[Tensor, " rows"]
    cap: SoftCap
    top: Float[Tensor, " rows"]  # the largest score so far
    others: Float[Tensor, " rows"]
    of_label: Float[Tensor, " rows"]  # the soft-cap's curve at the label

    @classmethod
    def of(cls, hidden: Tensor, labels: Tensor, cap: SoftCap) -> Chunk:
        """Before the first block."""
        zeros = hidden.new_zeros(len(labels), dtype=torch.float32)
        return cls(hidden, labels, cap, torch.full_like(zeros, -torch.inf), zeros, hidden.new_zeros(len(labels)))

    def add(self, block: Block) -> Tensor:
        """Count a block that is pressed: its powers become exp(score - top), 0 at the label.

        Returns what earlier sums shrink by.
        """
        top = torch.maximum(self.top, self.cap.scores(block.pressed.amax(dim=1)))
        shrink = torch.exp(self.top - top)
        place = self.labels - block.first
        inside = (place >= 0) & (place < len(block.head))
        place = place.clamp(0, len(block.head) - 1)[:, None]
        self.of_label = torch.where(inside, block.pressed.gather(1, place)[:, 0], self.of_label)
        powers = block.powers
        self.cap.powers(block.pressed, top, out=powers)
        powers.scatter_(1, place, powers.gather(1, place).masked_fill(inside[:, None], 0.0))
        self.top, self.others = top, self.others * shrink + powers.sum(dim=1)
        return shrink

    def total(self) -> Tensor:
        """The sum of exp(score - top) over all entries."""
        return self.others + torch.exp(self.cap.scores(self.of_label) - self.top)

    def losses(self) -> Tensor:
        """After the last block."""
        return self.total().log() + (self.top - self.cap.scores(self.of_label))


def chunked_loss(
    hidden: Float[Tensor, "labelled dim"],
    weight: Float[Tensor, "vocab dim"],
    labels: Int[Tensor, " labelled"],
    *,
    softcap: float,
    chunk_bytes: int,
    hidden_gradient: bool,
    weight_gradient: bool,
) -> LossAndGradients:
    """The loss, and the gradients that are wanted, of tokens which all have a label."""
    of_hidden = torch.empty_like(hidden, dtype=torch.float32) if hidden_gradient else None
    of_weight = torch.zeros_like(weight, dtype=torch.float32) if weight_gradient else None
    loss = hidden.new_zeros((), dtype=torch.float32)
    size = BlockSize.of(len(labels), weight, chunk_bytes, whole_rows=weight_gradient)
    cap = SoftCap.of(softcap, weight.dtype)
    for start in range(0, len(labels), size.rows):
        rows = slice(start, start + size.rows)
        chunk = Chunk.of(hidden[rows], labels[rows], cap)
        gradient = None if of_hidden is None else of_hidden[rows].zero_()
        kept: list[tuple[Block, Tensor]] = []  # with the tops as they were then
        for block in size.blocks(len(chunk.labels), weight):
            cap.press(chunk.hidden, block.head, out=block.pressed)
            shrink = chunk.add(block)
            if not (hidden_gradient or weight_gradient):
                continue
            cap.dampen(block.powers, block.pressed)
            if gradient is not None:
                add_product(gradient.mul_(shrink[:, None]), block.powers, block.head)
            if weight_gradient:
                kept.append((block, chunk.top))
        loss += chunk.losses().sum()
        total = chunk.total()
        of_label, part = chunk.others / total * cap.slope(chunk.of_label), cap.steepness / total
        if gradient is not None:
            gradient.mul_(part[:, None]).sub_(of_label[:, None] * weight[chunk.labels])
        if of_weight is not None:
            for block, top in kept:
                scaled = chunk.hidden.float() * (torch.exp(top - chunk.top) * part)[:, None]
                of_weight[block.first : block.first + len(block.head)].addmm_(block.powers.T, scaled)
            of_weight.index_add_(0, chunk.labels, chunk.hidden.float() * -of_label[:, None])
    return LossAndGradients(loss, of_hidden, of_weight)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product of matrices to a float32 sum; the product is taken in the dtype of ``right``."""
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left.to(right.dtype) @ right)
