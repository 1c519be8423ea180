# SPDX-License-Identifier: Apache-2.0
"""The loss as a sum; what it is divided by is counted elsewhere, over the whole optimizer step.

A mean per micro-batch would weigh the tokens of a short answer more than those of a long one, and
differently for every batch size and number of processes.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from trainer.data.batch import IGNORED


def token_loss_sum(logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats, in float32, summed over the positions that have a label; 0 if there is none.

    ``labels`` are already shifted, see ``Batch``.
    """
    supervised = labels != IGNORED
    # Only the supervised rows: prompts are often most of a batch, and the softmax the largest tensor of a step.
    return F.cross_entropy(logits[supervised].float(), labels[supervised], reduction="sum")
