# SPDX-License-Identifier: Apache-2.0
"""How far a run has come: all that going on needs beside weights, optimizer and random generators."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import CheckpointError


@dataclass(kw_only=True)
class TrainState:
    """Counts since the beginning of the run, over all processes, and what its evaluations found so far.

    ``position`` is the number of rows taken from the loader; the epoch and the specs of a step follow from
    it and from ``step``.
    """

    step: int = 0
    position: int = 0  # rows
    tokens: int = 0
    supervised_tokens: int = 0
    num_processes: int = 1  # of the run that wrote this; each left its random generators
    seconds: float = 0.0  # spent in training, evaluations and saving included
    evaluated_at: int = 0  # the step after which the last evaluation was made; 0: there was none
    best_loss: float | None = None  # the lowest validation loss
    best_step: int = 0  # and where it was found
    loss_to_beat: float | None = None  # the lowest that was lower by trainer.early_stopping.min_delta
    evaluations_without_gain: int = 0  # in a row, up to the last one
    stream: dict[str, Any] | None = None  # where a stream of data is; see trainer/data/stream.py

    def judge(self, loss: float, *, min_delta: float) -> None:
        """Take in the validation loss found after this step; one that is not finite is no gain."""
        self.evaluated_at = self.step
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step = loss, self.step
        if math.isfinite(loss) and (self.loss_to_beat is None or loss < self.loss_to_beat - min_delta):
            self.loss_to_beat, self.evaluations_without_gain = loss, 0
        else:
            self.evaluations_without_gain += 1

    def write(self, path: Path) -> None:
        """Write the counts as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> TrainState:
        """Read what ``write`` wrote.

        Raises:
            CheckpointError: The file is missing or is something else.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}: not the state of a run ({error!r}); delete {path.parent} to go on from an earlier one"
            ) from None
