# SPDX-License-Identifier: Apache-2.0
"""What was found of a task's items under each sub-model: ``items/TASK.jsonl``, a line per batch and sub-model.

A line says of which model, items and settings it is, so that a file can be read, or put back, by itself:

    spec, batch, items, digests        the sub-model's name; the batch's number, places and hashes of its items
    found                              what was found of each
    seconds, together                  wall time of the batch, and for how many sub-models at once
    peak_memory_bytes                  see ``trainer.sweep.row.Row``, as of these:
    model, data, settings, seed        the third is a hash of all else that decides what is found

Only where a line stands is kept in memory: what it says is read when it is asked for, of one sub-model at a time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import CheckpointError
from model.slicing.spec import SliceSpec
from trainer.evaluation.metric import Values
from trainer.evaluation.task import Task
from trainer.sweep.identity import Identity
from trainer.sweep.lines import append, cut_to_whole_lines


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found of one batch under all sub-models that were measured at once.

    Args:
        batch: The batch's number in its task.
        seconds: Wall time, for all sub-models together.
        peak_memory_bytes: See ``Row``.
        found: By the sub-model's name, for each item of the batch in order.
    """

    batch: int
    seconds: float
    peak_memory_bytes: int
    found: Mapping[str, Sequence[Values]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Where the line of a batch and a sub-model begins in the file, and what it says beside what was found."""

    at: int
    seconds: float
    together: int
    peak_memory_bytes: int


class Items:
    """What is there of one task.

    Args:
        path: The file, which may not be there yet; a last line that is none is cut off.
        task: The task.
        identity: Of the sweep.

    Raises:
        CheckpointError: A line that is not the last is none of this task's in this sweep.
    """

    def __init__(self, path: Path, task: Task, identity: Identity) -> None:
        self.path = path
        self.task = task
        self.of = {
            "model": identity.model, "data": task.fingerprint, "settings": identity.measuring,
            "seed": identity.statistics.seed,
        }  # fmt: skip
        self.measured: dict[str, dict[int, Line]] = defaultdict(dict)  # by sub-model and batch
        cut_to_whole_lines(path)
        if path.exists():
            at = 0
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    self.take(line, at, where=f"{path}:{number}")
                    at += len(line)

    def has(self, spec: SliceSpec, batch: int) -> bool:
        """Whether a batch was measured under a sub-model."""
        return batch in self.measured.get(spec.name, {})

    def has_all(self, spec: SliceSpec) -> bool:
        """Whether every batch was."""
        return len(self.measured.get(spec.name, {})) == len(self.task.batches)

    def add(self, measurement: Measurement) -> None:
        """Put a batch on the disk, a line for each sub-model.

        Raises:
            CheckpointError: It cannot be written.
        """
        batch = self.task.batches[measurement.batch]
        lines = [
            # What is no number stands as NaN, which Python reads; rows have null for it.
            json.dumps({
                "spec": name, "batch": measurement.batch, "items": [self.task.items[item] for item in batch],
                "digests": [self.task.digests[item] for item in batch], "found": found,
                "seconds": measurement.seconds, "together": len(measurement.found),
                "peak_memory_bytes": measurement.peak_memory_bytes, **self.of,
            })
            + "\n"
            for name, found in measurement.found.items()
        ]  # fmt: skip
        at = self.path.stat().st_size if self.path.exists() else 0
        append(self.path, "".join(lines))
        for line in map(str.encode, lines):
            self.take(line, at, where=str(self.path))
            at += len(line)

    def take(self, line: bytes, at: int, *, where: str) -> None:
        """Know what a line says, which begins at this byte."""
        try:
            record = json.loads(line)
            name, number = str(record["spec"]), int(record["batch"])
            if number < 0:
                raise IndexError(number)
            own = [self.task.digests[item] for item in self.task.batches[number]]
            found = Line(
                at=at, seconds=float(record["seconds"]), together=int(record["together"]),
                peak_memory_bytes=int(record["peak_memory_bytes"]),
            )  # fmt: skip
            others = [key for key, value in self.of.items() if record[key] != value]
            is_same = record["digests"] == own and len(record["found"]) == len(own)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise CheckpointError(f"{where}: no batch of a sweep ({error!r}); {self.remedy}") from None
        if others:
            key = others[0]
            raise CheckpointError(
                f"{where}: is of another sweep: its {key} is {record[key]!r}, here it is {self.of[key]!r};"
                f" {self.remedy}"
            )
        if not is_same:
            raise CheckpointError(
                f"{where}: batch {number} has other items than task '{self.task.name}'; {self.remedy}"
            )
        if number in self.measured[name]:
            raise CheckpointError(
                f"{where}: batch {number} stands above already for sub-model '{name}'; take one out"
            )  # fmt: skip
        self.measured[name][number] = found

    @property
    def remedy(self) -> str:
        """What to do about a line that cannot be used."""
        return f"put a copy of the file back, or delete it to measure task '{self.task.name}' anew"

    def found(self, spec: SliceSpec) -> list[Values]:
        """What was found of every item under a sub-model, in the order of the task's items.

        Raises:
            CheckpointError: Not every batch was measured under it, or the file has changed meanwhile.
        """
        known = self.measured.get(spec.name, {})
        by_item: dict[int, Any] = {}
        try:
            with self.path.open("rb") as file:
                for number, batch in enumerate(self.task.batches):
                    file.seek(known[number].at)
                    by_item |= zip(batch, json.loads(file.readline())["found"], strict=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.path}: what was found under sub-model '{spec.name}' is not all there ({error!r}); go on with"
                " resume=true, which measures what is missing"
            ) from None
        return [by_item[item] for item in range(len(self.task.items))]
