# SPDX-License-Identifier: Apache-2.0
"""The loss as a sum; what it is divided by is counted elsewhere, over the whole optimizer step.

A mean per micro-batch would weigh the tokens of a short answer more than those of a long one, and
differently for every batch size and number of processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from trainer.data.batch import IGNORED


def linear_cross_entropy_sum(
    hidden: Float[Tensor, "batch seq dim"],
    weight: Float[Tensor, "vocab dim"],
    labels: Int[Tensor, "batch seq"],
    *,
    softcap: float,
) -> Float[Tensor, ""]:
    """Cross-entropy in nats, in float32, summed over the positions that have a label; 0 if there is none.

    Args:
        hidden: Hidden states after the final norm.
        weight: The head; a gradient is made for it only if it asks for one.
        labels: Already shifted, see ``Batch``.
        softcap: Scores are pressed into ± this.
    """
    supervised = labels != IGNORED
    # Only the supervised rows: prompts are often most of a batch, and the softmax the largest tensor of a step.
    scores = F.linear(hidden[supervised], weight)
    return F.cross_entropy((torch.tanh(scores / softcap) * softcap).float(), labels[supervised], reduction="sum")
