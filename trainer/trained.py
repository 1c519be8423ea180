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
from torch import Tensor, nn
from torch.optim import Optimizer

from model.errors import CheckpointError
from trainer.average import Average
from trainer.sharding import Sharding, gathered, share_of, shared_state
from trainer.weights import Weights, copy_into
from trainer.zero import Zero

WEIGHTS, OPTIMIZER_FILE, AVERAGE_FILE = "weights", "optimizer.pt", "average.pt"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The parts of a run that a step changes, beside its counts.

    Args:
        parameters: What the optimizer moves, by name.
        sharding: How the model is divided up; None where every process has all of it.
        zero: How the optimizer's states alone are divided up; None where they are not.
    """

    weights: Weights
    optimizer: Optimizer
    parameters: Mapping[str, nn.Parameter]
    average: Average | None
    sharding: Sharding | None = None
    zero: Zero | None = None

    def save(self, directory: Path, *, written: bool = True) -> None:
        """Write all of it into a directory in which an empty ``weights`` is; called by every process.

        Args:
            directory: The same for all.
            written: Whether it is this process that writes; others have shares to give where the model is divided up.

        Raises:
            OSError: It cannot be written.
        """
        if self.sharding is None and self.zero is None and not written:
            return
        # All that processes do together comes first: one that cannot write must not keep the others waiting.
        states = self.optimizer.state_dict() if self.zero is None else self.zero.state_dict(kept=written)
        average: dict[str, Any] | None = None
        if self.average is not None:
            own = {name: parameter.detach() for name, parameter in self.parameters.items()}
            average = {"average": self.average.state_dict(), "trained": own}
        if self.sharding is not None:
            states, average = gathered(states, kept=written), gathered(average, kept=written)
        with self.measured(), self.whole(kept=written):
            if written:
                self.weights.save(directory / WEIGHTS)
        if written:
            write_tensors(states, directory / OPTIMIZER_FILE)
            if average is not None:
                write_tensors(average, directory / AVERAGE_FILE)

    def load(self, directory: Path) -> None:
        """Put everything back to what it was when ``save`` was called."""
        with self.whole(kept=True, changed=True):
            self.weights.load(directory / WEIGHTS)
        self.load_states(read_tensors(directory / OPTIMIZER_FILE))
        if self.average is not None:
            stored = read_tensors(directory / AVERAGE_FILE)
            if differing := stored["trained"].keys() ^ self.parameters.keys():
                raise CheckpointError(
                    f"{directory / AVERAGE_FILE}: has other trained tensors, as '{min(differing)}'; go on with the run"
                    " that wrote it"
                )
            copy_into({name: own.detach() for name, own in self.parameters.items()}, self.shares(stored["trained"]))
            averages = self.shares(stored["average"]["averages"])
            self.average.load_state_dict({**stored["average"], "averages": averages})
        if self.zero is not None:
            self.zero.follow_weights()

    def load_states(self, states: dict[str, Any]) -> None:
        """Put the optimizer's whole state back to where its shares belong."""
        if self.zero is not None:
            self.zero.load_state_dict(states)
        else:
            self.optimizer.load_state_dict(states if self.sharding is None else shared_state(self.optimizer, states))

    def shares(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Whole tensors as the parameters of their names are: divided up, or not."""
        if self.sharding is None:
            return tensors
        return {name: share_of(full, self.parameters[name]) for name, full in tensors.items()}

    def whole(self, *, kept: bool, changed: bool = False) -> contextlib.AbstractContextManager[None]:
        """As ``Sharding.whole``; where the model is not divided up, it is whole."""
        return contextlib.nullcontext() if self.sharding is None else self.sharding.whole(kept=kept, changed=changed)

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
        # It says whatever its archive came upon first: "file write failed", "unexpected pos 576 vs 534", "iostream
        # error". Fetching the tensors may fail as well, but not for want of a disk.
        if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
            raise
        raise OSError(None, str(error).splitlines()[0], str(path)) from error


def read_tensors(path: Path) -> Any:
    """What ``write_tensors`` wrote, in the processor's memory; from there it is copied to where it belongs."""
    return torch.load(path, weights_only=True, map_location="cpu")
