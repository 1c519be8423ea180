# SPDX-License-Identifier: Apache-2.0
"""One micro-batch through one sub-model. No counting, no logging."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.inputs import Inputs, Outputs
from model.slicing.spec import SliceSpec
from trainer.data.batch import Batch
from trainer.loss import token_loss_sum


def batch_loss_sum(model: nn.Module, batch: Batch, spec: SliceSpec) -> Float[Tensor, ""]:
    """The summed loss of ``batch`` under ``spec``, to be divided by the step's supervised tokens."""
    return token_loss_sum(model(batch.inputs, spec=spec).logits, batch.labels)


class Anchored(nn.Module):
    """A model of which towers or embedders alone are trained, called like the model.

    A micro-batch without their media has no gradient; but there must be something to go backward through, or the
    processes whose rows have media would wait forever for this one. It goes to a parameter that counts for nothing
    and is nobody's to optimise, so those of the model are left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.anchor = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, inputs: Inputs, spec: SliceSpec) -> Outputs:
        """The model's scores, which depend on the anchor where nothing else that is trained is behind them."""
        outputs: Outputs = self.model(inputs, spec=spec)
        if outputs.logits.requires_grad:
            return outputs
        return dataclasses.replace(outputs, logits=outputs.logits + 0 * self.anchor)


def anchored(model: nn.Module, decoder: nn.Module) -> nn.Module:
    """``model`` as it is trained: itself where a gradient flows to its text decoder, and so in every step."""
    return model if any(parameter.requires_grad for parameter in decoder.parameters()) else Anchored(model)
