# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention with norms on queries, keys and values.

A layer either makes keys and values (a producer) or is given another layer's (a reader, which owns
no weights for them). Both are plain arguments: sharing is architecture, not a property of a cache.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from model.config import TextConfig
from model.layers.kernel import Kernel
from model.layers.kv_cache import KeyValues
from model.layers.norm import RMSNorm, rms_norm
from model.layers.rotary import Rotary


class Attention(nn.Module):
    """One layer's attention. ``produces`` says whether it owns key and value weights."""

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

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        key_values: KeyValues,
        rotary: Rotary,
        kernel: Kernel,
    ) -> Float[Tensor, "batch seq dim"]:
        """Attend from ``x`` to those of ``key_values`` that ``kernel`` knows of."""
        queries = rotary.rotate(self.q_norm(self.q_proj(x).view(*x.shape[:-1], -1, self.head_dim)))
        attended = kernel(queries.transpose(1, 2), key_values.keys, key_values.values)
        return self.o_proj(attended.transpose(1, 2).flatten(2))
