# SPDX-License-Identifier: Apache-2.0
"""One micro-batch through one sub-model. No state, no counting, no logging."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from model.slicing.spec import SliceSpec
from trainer.data.batch import Batch
from trainer.loss import token_loss_sum


def batch_loss_sum(model: nn.Module, batch: Batch, spec: SliceSpec) -> Float[Tensor, ""]:
    """The summed loss of ``batch`` under ``spec``, to be divided by the step's supervised tokens."""
    return token_loss_sum(model(batch.inputs, spec=spec).logits, batch.labels)
