# SPDX-License-Identifier: Apache-2.0
"""A linear map of which a leading part can be used: how a feed-forward network is narrowed in place."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class NarrowLinear(nn.Linear):
    """A bias-free linear map that can compute its first ``rows`` outputs from its first ``columns`` inputs.

    Only the entries in use take part: the others are not read, and their gradient is exactly zero.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(
        self,
        input: Float[Tensor, "... columns"],  # noqa: A002 - torch's name
        rows: int | None = None,
        columns: int | None = None,
    ) -> Float[Tensor, "... rows"]:
        """Apply the map, or its leading part; ``None`` means all of an axis."""
        return F.linear(input, self.weight[:rows, :columns])
