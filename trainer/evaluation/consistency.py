# SPDX-License-Identifier: Apache-2.0
"""How far a sub-model's predictions are from those of another, usually its parent."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from model.gemma3n import Gemma3n

SCORE_BYTES = 16  # of memory for each score: two numbers of either model
CHUNK_BYTES = 256 << 20


@torch.no_grad()
def divergences(
    gemma: Gemma3n,
    reference: Float[Tensor, "tokens dim"],
    hidden: Float[Tensor, "tokens dim"],
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, " tokens"]:
    """Kullback-Leibler divergence KL(reference || other) of the predictions at each token, in nats, in float32.

    Args:
        gemma: Whose head makes scores of hidden states.
        reference: Hidden states of the one whose predictions are the measure.
        hidden: Those of the other, of the same tokens.
        chunk_bytes: About the most memory that scores take at a time; those of one token fit in any case.
    """
    rows = max(1, chunk_bytes // (SCORE_BYTES * gemma.config.text.vocab_size))
    found = [reference.new_empty(0, dtype=torch.float32)]
    for ours, theirs in zip(reference.split(rows), hidden.split(rows), strict=True):
        expected, other = (gemma.head(states).log_softmax(dim=-1) for states in (ours, theirs))
        found.append((expected.exp() * (expected - other)).sum(dim=-1))
    return torch.cat(found)
