# SPDX-License-Identifier: Apache-2.0
"""One micro-batch through one sub-model. No counting, no logging."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.adapter.lora import PeftModel, base_of
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.slicing.spec import SliceSpec
from trainer.data.batch import Batch
from trainer.loss import CHUNK_BYTES, linear_cross_entropy_sum

T = TypeVar("T")


def batch_loss_sum(model: Gemma3n | PeftModel, batch: Batch, spec: SliceSpec) -> Float[Tensor, ""]:
    """The summed loss of ``batch`` under ``spec``, to be divided by the step's supervised tokens."""
    return loss_sum(base_of(model), batch.inputs, batch.labels, spec)


def loss_sum(
    gemma: Gemma3n,
    inputs: Inputs,
    labels: Int[Tensor, "batch seq"],
    spec: SliceSpec,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, ""]:
    """The summed loss at the labels. Scores of positions without one are never made, and never all at a time."""
    hidden, _ = gemma.hidden(inputs, spec)
    softcap = gemma.config.text.final_logit_softcapping
    return linear_cross_entropy_sum(hidden, gemma.head_weight, labels, softcap=softcap, chunk_bytes=chunk_bytes)


class SupervisedLoss(nn.Module):
    """A model and its loss in one forward pass: what several processes wrap, so that all of a step is inside.

    Where towers or embedders alone are trained, a micro-batch without their media has no gradient; but there must
    be something to go backward through, or the processes whose rows have media would wait forever for this one. It
    goes to a parameter that counts for nothing and is nobody's to optimise, so those of the model are left alone.

    Args:
        chunk_bytes: About the most memory that scores take at a time.
    """

    def __init__(self, model: Gemma3n | PeftModel, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__()
        self.model = model
        self.chunk_bytes = chunk_bytes
        decoder = base_of(model).model.language_model
        self.anchor: nn.Parameter | None = None
        if not any(parameter.requires_grad for parameter in decoder.parameters()):
            self.anchor = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, inputs: Inputs, labels: Int[Tensor, "batch seq"], spec: SliceSpec) -> Float[Tensor, ""]:
        """The summed loss, which depends on the anchor where nothing else that is trained is behind it."""
        summed = loss_sum(base_of(self.model), inputs, labels, spec, chunk_bytes=self.chunk_bytes)
        return summed if self.anchor is None or summed.requires_grad else summed + 0 * self.anchor

    def within(self, work: Callable[[], T]) -> T:
        """Do something else with the model where a forward pass would be made; see ``trainer/sharding.py``."""
        return work()
