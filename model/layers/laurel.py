# SPDX-License-Identifier: Apache-2.0
"""LAuReL: a learned low-rank addition to the residual connection. Source: arXiv 2411.07501; Gemma 3n."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from model.config import TextConfig
from model.layers.norm import RMSNorm


class Laurel(nn.Module):
    """``x`` plus a normed rank-``laurel_rank`` map of it. In Gemma 3n, ``x`` is the layer's *normed* input."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.linear_left = nn.Linear(config.hidden_size, config.laurel_rank, bias=False)
        self.linear_right = nn.Linear(config.laurel_rank, config.hidden_size, bias=False)
        self.post_laurel_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """Apply it."""
        return x + self.post_laurel_norm(self.linear_right(self.linear_left(x)))
