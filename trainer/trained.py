# SPDX-License-Identifier: Apache-2.0
"""What training moves: weights, the optimizer's state, their running average. The one way to disk and back.

weights/        what is measured and handed on, as the run's own writer leaves it: the average where there is one
optimizer.pt
average.pt      only with trainer.average.decay: the average's state, and the weights themselves as they were trained
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from model.errors import CheckpointError
from trainer.average import Average
from trainer.weights import Weights, copy_into

WEIGHTS, OPTIMIZER_FILE, AVERAGE_FILE = "weights", "optimizer.pt", "average.pt"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The parts of a run that a step changes, beside its counts.

    Args:
        parameters: What the optimizer moves, by name.
    """

    weights: Weights
    optimizer: Optimizer
    parameters: Mapping[str, nn.Parameter]
    average: Average | None

    def save(self, directory: Path) -> None:
        """Write all of it into a directory in which an empty ``weights`` is.

        Raises:
            OSError: It cannot be written.
        """
        with self.measured():
            self.weights.save(directory / WEIGHTS)
        write_tensors(self.optimizer.state_dict(), directory / OPTIMIZER_FILE)
        if self.average is not None:
            own = {name: parameter.detach() for name, parameter in self.parameters.items()}
            write_tensors({"average": self.average.state_dict(), "trained": own}, directory / AVERAGE_FILE)

    def load(self, directory: Path) -> None:
        """Put everything back to what it was when ``save`` was called."""
        self.weights.load(directory / WEIGHTS)
        self.optimizer.load_state_dict(read_tensors(directory / OPTIMIZER_FILE))
        if self.average is not None:
            stored = read_tensors(directory / AVERAGE_FILE)
            if differing := stored["trained"].keys() ^ self.parameters.keys():
                raise CheckpointError(
                    f"{directory / AVERAGE_FILE}: has other trained tensors, as '{min(differing)}'; go on with the run"
                    " that wrote it"
                )
            copy_into({name: own.detach() for name, own in self.parameters.items()}, stored["trained"])
            self.average.load_state_dict(stored["average"])

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Within the block the model has the weights that are measured and handed on."""
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            yield


def write_tensors(value: Any, path: Path) -> None:
    """``torch.save``, whose error on a full disk is an OSError like everybody else's."""
    try:
        torch.save(value, path)
    except RuntimeError as error:
        if "write" not in str(error):
            raise
        raise OSError(None, str(error).splitlines()[0], str(path)) from error


def read_tensors(path: Path) -> Any:
    """What ``write_tensors`` wrote, in the processor's memory; from there it is copied to where it belongs."""
    return torch.load(path, weights_only=True, map_location="cpu")
