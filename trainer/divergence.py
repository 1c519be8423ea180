# SPDX-License-Identifier: Apache-2.0
"""A loss or a gradient that is not finite: which step, which rows, which parameters, and what to do.

Said before the optimizer is touched, on the screen and in ``divergence.json`` in the run's directory.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import DivergenceError

DIVERGENCE_FILE = "divergence.json"
NUM_SHOWN = 5  # parameters and rows named when a run has to stop; the file has all


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """What is known of a step that cannot be taken.

    ``rows`` are those of the micro-batches whose loss is not finite; all of the step if every loss is finite and
    the gradient alone is not. ``parameters`` are those whose gradient is not finite, where that is known.
    """

    step: int  # the one that is not taken, counted from 1
    specs: list[str]
    loss_sums: list[float]  # for each spec
    gradient_norm: float | None  # None: the loss was looked at first
    parameters: list[str]
    rows: list[str]

    def write(self, directory: Path) -> None:
        """Leave a file; numbers that JSON has not are written as text."""
        told = dataclasses.asdict(self)
        told["loss_sums"] = [value if math.isfinite(value) else str(value) for value in self.loss_sums]
        if self.gradient_norm is not None and not math.isfinite(self.gradient_norm):
            told["gradient_norm"] = str(self.gradient_norm)
        (directory / DIVERGENCE_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    def error(self) -> DivergenceError:
        """The same as an error for whoever looks at the screen."""
        if self.gradient_norm is None:
            found = f"the loss is {', '.join(map(str, self.loss_sums))} (specs: {', '.join(self.specs)})"
            remedy = "look at the rows of the micro-batches it is of"
        else:
            found = (
                f"the gradient's norm is {self.gradient_norm} (specs: {', '.join(self.specs)};"
                f" parameters: {shortened(self.parameters)})"
            )
            remedy = "look at the rows of this step"
        return DivergenceError(
            f"step {self.step}: {found}; weights and optimizer are as after step {self.step - 1}. Lower"
            f" optim.learning_rate or trainer.max_grad_norm and begin anew, or {remedy}: {shortened(self.rows)}"
            f" (all of it: {DIVERGENCE_FILE})"
        )


def shortened(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
