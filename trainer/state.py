# SPDX-License-Identifier: Apache-2.0
"""How far a run has come: all that going on needs beside weights, optimizer and random generators."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from model.errors import CheckpointError


@dataclass(kw_only=True)
class TrainState:
    """Counts since the beginning of the run, over all processes.

    ``position`` is the number of rows taken from the loader; the epoch and the specs of a step follow from
    it and from ``step``.
    """

    step: int = 0
    position: int = 0  # rows
    tokens: int = 0
    supervised_tokens: int = 0
    num_processes: int = 1  # of the run that wrote this; each left its random generators

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
