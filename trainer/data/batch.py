# SPDX-License-Identifier: Apache-2.0
"""What one micro-batch is: the model's inputs, and beside them what it should have said."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from model.inputs import Inputs, SoftTokens
from model.processor.media import Picture, Recording

IGNORED = -100  # label of a position nothing is learnt at; the default of torch's cross-entropy


@dataclass(frozen=True)
class Batch:
    """Inputs with their labels, and what the images and clips among the inputs were decoded from.

    Where soft tokens are kept, those known are in ``seen`` and ``heard``, one of a picture or recording each, and the
    inputs hold the media of the others alone: ``SharedTowers.encode`` puts both together.

    Labels are *already shifted*: ``labels[b, t]`` is the token that should follow ``inputs.ids[b, t]``, so
    labels and logits are compared position by position and nobody downstream shifts again.
    """

    inputs: Inputs
    labels: Int[Tensor, "batch seq"]
    examples: int
    pictures: tuple[Picture, ...] = ()
    recordings: tuple[Recording, ...] = ()
    seen: tuple[SoftTokens | None, ...] = ()
    heard: tuple[SoftTokens | None, ...] = ()

    @property
    def supervised_tokens(self) -> int:
        """How many positions have a label."""
        return int((self.labels != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """How many positions hold a real token, supervised or not."""
        return int(self.inputs.mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return dataclasses.replace(
            self,
            inputs=self.inputs.to(device),
            labels=self.labels.to(device),
            seen=tuple(soft and soft.to(device) for soft in self.seen),
            heard=tuple(soft and soft.to(device) for soft in self.heard),
        )
