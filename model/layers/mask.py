# SPDX-License-Identifier: Apache-2.0
"""Who may attend to whom, as one boolean tensor per layer type."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def attention_mask(
    key_mask: Bool[Tensor, "batch keys"],
    num_queries: int,
    window: int | None = None,
    *,
    documents: Int[Tensor, "batch keys"] | None = None,
) -> Bool[Tensor, "batch 1 queries keys"]:
    """True where a query may attend to a key: causal, inside the window, and not to padding, nor to another document.

    The queries are the last ``num_queries`` of the keys' positions. ``window`` counts tokens and
    includes the attending one. Every query may attend to itself: a padded query then has a finite
    result, which nobody reads, instead of a softmax over nothing.
    """
    num_keys = key_mask.shape[1]
    keys = torch.arange(num_keys, device=key_mask.device)
    queries = keys[num_keys - num_queries :, None]
    allowed = keys <= queries
    if window is not None:
        allowed = allowed & (keys > queries - window)
    if documents is not None:
        allowed = allowed & (documents[:, None, None, :] == documents[:, None, -num_queries:, None])
    return (allowed & key_mask[:, None, None, :]) | (keys == queries)
