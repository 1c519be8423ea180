# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of a run keeps of the model: all of it, or the adapter that is trained.

Either is left in the form that everything else reads: a run's ``weights/`` can be sliced, merged, evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.adapter.lora import PeftModel, restore, save_adapter
from model.checkpoint.load import load
from model.checkpoint.saving import save
from model.gemma3n import Gemma3n


@dataclass(frozen=True)
class Weights:
    """How the trained weights get to a directory and back.

    ``save`` writes into an existing empty directory. ``load`` copies into the parameters that the optimizer
    already knows; it must not replace them.
    """

    save: Callable[[Path], None]
    load: Callable[[Path], None]


def model_weights(gemma: Gemma3n, *, extras: Callable[[Path], None] | None = None) -> Weights:
    """The whole model, as a checkpoint directory.

    Args:
        extras: Adds files to that directory, such as the tokenizer's.
    """

    def load_from(directory: Path) -> None:
        stored = load(directory, dtype=next(gemma.parameters()).dtype)
        copy_into(dict(gemma.named_parameters()), dict(stored.named_parameters()))

    return Weights(save=lambda directory: save(gemma, directory, extras=extras), load=load_from)


def adapter_weights(adapted: PeftModel) -> Weights:
    """The adapter alone, as a PEFT directory."""
    return Weights(
        save=lambda directory: save_adapter(adapted, directory), load=lambda directory: restore(adapted, directory)
    )


@torch.no_grad()
def copy_into(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Give every tensor of ``own`` the values of its namesake."""
    for name, tensor in own.items():
        tensor.copy_(stored[name])
