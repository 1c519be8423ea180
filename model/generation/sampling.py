# SPDX-License-Identifier: Apache-2.0
"""How the next token is chosen: pure functions of scores, a config and random generators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How to continue a text.

    Raises:
        ConfigError: A value is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0  # 0 takes the best token; 1 samples the model's own distribution
    top_k: int = 0  # sample among the k best only; 0 among all
    top_p: float = 1.0  # sample among the best tokens that together have this probability
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed, holds in (
            ("max_new_tokens", "1 or more", self.max_new_tokens >= 1),
            ("temperature", "0 (always the best token) or more", self.temperature >= 0),
            ("top_k", "0 (no limit) or more", self.top_k >= 0),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
        ):
            if not holds:
                raise ConfigError(f"sampling: {name} is {getattr(self, name)}; it must be {allowed}")


def choose(
    logits: Float[Tensor, "batch vocab"], sampling: SamplingConfig, random: Sequence[torch.Generator]
) -> Int[Tensor, " batch"]:
    """One token per row: the best one at temperature 0, else a draw among the tokens ``sampling`` leaves.

    Args:
        logits: The scores.
        sampling: How to choose.
        random: What draws: one for each row, whose draws then are the same in whatever batch it is, or one for all.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = keep_top_p(keep_top_k(logits / sampling.temperature, sampling.top_k), sampling.top_p)
    # Drawn on the CPU, so that a seed means the same on every device.
    probabilities = logits.softmax(dim=-1).to("cpu", torch.float64)
    parts = zip(probabilities.tensor_split(len(random)), random, strict=True)
    return torch.cat([torch.multinomial(rows, 1, generator=own) for rows, own in parts]).squeeze(1).to(logits.device)


def without(logits: Float[Tensor, "batch vocab"], ids: Int[Tensor, " ids"]) -> Float[Tensor, "batch vocab"]:
    """Minus infinity at ``ids``, which are then never chosen."""
    return logits.index_fill(-1, ids, -torch.inf)


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Minus infinity everywhere but at the ``k`` best scores (ties with the last of them stay); 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Minus infinity everywhere but at the fewest best scores that together have probability ``p`` or more.

    Source: nucleus sampling, arXiv 1904.09751.
    """
    if p == 1:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ranked.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what better tokens have already
    outside = (before >= p).scatter(-1, order, before >= p)
    return logits.masked_fill(outside, -torch.inf)
