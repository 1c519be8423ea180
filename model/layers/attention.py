# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention with norms on queries, keys and values.

A layer either makes keys and values (a producer) or is given another layer's (a reader, which owns
no weights for them). Both are plain arguments: sharing is architecture, not a property of a cache.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from model.config import TextConfig
from model.layers.kv_cache import KeyValues
from model.layers.norm import RMSNorm, rms_norm
from model.layers.rotary import Rotary


class Attention(nn.Module):
    """What stands before and behind one layer's attention, which a ``Kernel`` computes.

    ``produces`` says whether it owns key and value weights.
    """

    def __init__(self, config: TextConfig, *, produces: bool) -> None:
        super().__init__()
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps
        query_dim = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        if produces:
            key_dim = config.num_key_value_heads * config.head_dim
            self.k_proj = nn.Linear(config.hidden_size, key_dim, bias=False)
            self.v_proj = nn.Linear(config.hidden_size, key_dim, bias=False)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.o_proj = nn.Linear(query_dim, config.hidden_size, bias=False)

    def key_values(self, x: Float[Tensor, "batch seq dim"], rotary: Rotary) -> KeyValues:
        """Keys and values of ``x``; only a producer has them."""
        heads = (*x.shape[:-1], -1, self.head_dim)
        keys = rotary.rotate(self.k_norm(self.k_proj(x).view(heads)))
        values = rms_norm(self.v_proj(x).view(heads), self.eps)
        return KeyValues(keys.transpose(1, 2), values.transpose(1, 2))

    def queries(self, x: Float[Tensor, "batch seq dim"], rotary: Rotary) -> Float[Tensor, "batch heads seq head_dim"]:
        """Queries of ``x``."""
        heads = (*x.shape[:-1], -1, self.head_dim)
        return rotary.rotate(self.q_norm(self.q_proj(x).view(heads))).transpose(1, 2)

    def output(self, attended: Float[Tensor, "batch seq heads head_dim"]) -> Float[Tensor, "batch seq dim"]:
        """What the layer makes of the values that the queries took."""
        return self.o_proj(attended.flatten(2))
