# SPDX-License-Identifier: Apache-2.0
"""Keys and values as values: handed from producers to readers, and from one decoding step to the next.

A cache belongs to the layers that *produce* keys and values (by parent index); layers that read
another's have nothing of their own to keep. It is never changed: each step makes the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class KeyValues:
    """Keys after norm and rotation, values after norm, of one producer."""

    keys: Float[Tensor, "batch kv_heads seq head_dim"]
    values: Float[Tensor, "batch kv_heads seq head_dim"]

    def then(self, new: KeyValues) -> KeyValues:
        """These followed by ``new`` along the sequence."""
        return KeyValues(torch.cat((self.keys, new.keys), dim=2), torch.cat((self.values, new.values), dim=2))


@dataclass(frozen=True)
class KVCache:
    """All that is needed to go on decoding after the tokens seen so far."""

    layers: dict[int, KeyValues]  # producer's index in the parent -> its keys and values
    mask: Bool[Tensor, "batch seq"]  # True at real tokens seen so far

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> KVCache:
        """Nothing seen yet."""
        return cls({}, torch.zeros(batch, 0, dtype=torch.bool, device=device))

    @property
    def length(self) -> int:
        """Tokens seen so far, padding included."""
        return self.mask.shape[1]
