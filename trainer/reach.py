# SPDX-License-Identifier: Apache-2.0
"""Whether what is trained is reached by the loss: a tensor without a gradient would stay as it is without a word."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from model.checkpoint.names import modality_of
from model.errors import ConfigError
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from trainer.data.batch import Batch
from trainer.data.supervise import TokenRow
from trainer.divergence import shortened

LAYER = re.compile(r"language_model\.layers\.(\d+)\.")
WRAPPED = re.compile(r"^base_model\.model\.")  # what an adapter puts before the names of its base
CHECKED_STEPS = 20  # elastic steps and rare media come to everything in time; what never does is none of our business


class Reach:
    """Trained tensors that have had no gradient yet, in this process since it began.

    Args:
        parameters: What is trained, by its name in the model.
        has_gradient: Whether one of them has a gradient.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], has_gradient: Callable[[nn.Parameter], bool]) -> None:
        self.waiting = dict(parameters)
        self.has_gradient = has_gradient
        self.steps = 0

    def check(self, batches: Sequence[Batch], specs: Sequence[SliceSpec]) -> None:
        """Look at the gradients of a step that is not yet taken.

        Only what had to get one is missed: not layers that every spec of the step skips, nor what takes in a
        medium that none of the step's rows has.

        Raises:
            ConfigError: Something had to have a gradient and has none; it is named.
        """
        if not self.waiting or self.steps == CHECKED_STEPS:
            return
        self.steps += 1
        self.waiting = {name: own for name, own in self.waiting.items() if not self.has_gradient(own)}
        layers = {layer for spec in specs for layer in spec.kept_layers}
        media = media_of(batches)
        if missed := [name for name in self.waiting if is_used(name, layers, media)]:
            raise ConfigError(
                f"these tensors are trained, but the loss does not depend on them: {shortened(missed)} (no gradient in"
                " the first step that used them); leave them out by adapter.targets, or by freeze"
            )


def media_of(batches: Sequence[Batch]) -> set[Modality]:
    """What the rows of these batches hold; text always."""
    found = {Modality.text}
    if any(batch.inputs.images is not None for batch in batches):
        found.add(Modality.vision)
    if any(batch.inputs.audio is not None for batch in batches):
        found.add(Modality.audio)
    return found


def media_of_rows(rows: Sequence[TokenRow]) -> set[Modality]:
    """The same of rows that are not batches yet."""
    found = {Modality.text}
    if any(row.pictures for row in rows):
        found.add(Modality.vision)
    if any(row.recordings for row in rows):
        found.add(Modality.audio)
    return found


def is_used(name: str, layers: set[int], media: set[Modality]) -> bool:
    """Whether a forward pass over these layers and media uses the tensor of this name."""
    name = WRAPPED.sub("", name)
    layer = LAYER.search(name)
    return modality_of(name) in media and (layer is None or int(layer[1]) in layers)
