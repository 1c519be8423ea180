# SPDX-License-Identifier: Apache-2.0
"""The directory of a sweep: what it is a sweep of, what was found of every item, and the rows that follow.

    sweep.json              what must be the same when it goes on, and its sub-models; see trainer/sweep/identity.py
    items/TASK.jsonl        what was found of items, a line per batch and sub-model; see trainer/sweep/items.py
    rows.jsonl              a line per sub-model and task, once the task is finished; see trainer/sweep/row.py

Lines are added at the end and are on the disk before the next batch begins. Of a sweep killed at any moment nothing
but the last line can be a piece of one; it is cut off when the sweep goes on. A row whose items are not all there, as
when a file of them was deleted, is taken out then, and the sub-model measured anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from model.errors import ConfigError, InputError
from model.slicing.spec import SliceSpec
from trainer.checkpoint import write_whole
from trainer.evaluation.task import Task
from trainer.locking import lock
from trainer.sweep.identity import Identity, read_record, refuse_another, together
from trainer.sweep.items import Items
from trainer.sweep.lines import append, cut_to_whole_lines
from trainer.sweep.row import Row, read_rows

SWEEP_FILE, ROWS_FILE, ITEMS = "sweep.json", "rows.jsonl", "items"


class Store:
    """The directory of a sweep, which has it to itself until ``close``.

    Args:
        directory: Where it is, or will be.
        identity: What it is a sweep of.
        specs: Its sub-models; there may be others than before, but a name means what it meant.
        resume: Whether to go on with the sweep that is there; one that measured nothing is begun anew anyhow.

    Raises:
        ConfigError: There is a sweep already, and it is not to be gone on with; or it is still running.
        CheckpointError: The sweep there is another one; the keys and both values are named. Or a file of items is
            damaged, or has what is no task's.
        InputError: A row there is of another model, task or data, or is none.
    """

    def __init__(self, directory: Path, identity: Identity, specs: Sequence[SliceSpec], *, resume: bool) -> None:
        self.directory = directory
        self.identity = identity
        directory.mkdir(parents=True, exist_ok=True)
        self.lock: TextIO = lock(directory, taken(directory))
        try:
            self.claim(identity.record(specs), resume=resume)
            self.known = {task.name: Items(self.items_path(task.name), task, identity) for task in identity.tasks}
            self.rows: dict[tuple[str, str], Row] = self.read_rows()  # finished ones, by sub-model and task
            self.take_out_unfounded()
        except BaseException:
            self.close()
            raise

    def claim(self, now: dict[str, Any], *, resume: bool) -> None:
        """Write what this sweep is, or compare it with what is there."""
        path = self.directory / SWEEP_FILE
        if not self.has_begun():
            write_whole(path, json.dumps(now, indent=2, sort_keys=True) + "\n")
            return
        stored = read_record(path)
        if not resume:
            raise ConfigError(
                f"'{self.directory}' already holds a sweep; go on with it by resume=true beside all that it was begun"
                " with, or sweep into another directory"
            )
        refuse_another(stored=stored, now=now, path=path)
        merged, changed = together(stored, now)
        if changed:
            print(
                f"'{self.directory}' continues, but not with the same rounding: {', '.join(changed)}", file=sys.stderr
            )
        if merged != stored:
            write_whole(path, json.dumps(merged, indent=2, sort_keys=True) + "\n")

    def has_begun(self) -> bool:
        """Whether anything was measured."""
        items = (self.directory / ITEMS).glob("*.jsonl")  # one without a line is of a disk that was full
        return (self.directory / ROWS_FILE).exists() or any(path.stat().st_size for path in items)

    def read_rows(self) -> dict[tuple[str, str], Row]:
        """The rows that are there, all of them this sweep's."""
        path = self.directory / ROWS_FILE
        cut_to_whole_lines(path)
        rows: dict[tuple[str, str], Row] = {}
        data = {task.name: task.fingerprint for task in self.identity.tasks}
        for where, row in read_rows(path) if path.exists() else ():
            for what, found, wanted in (
                ("model", row.model, self.identity.model),
                (f"data of task '{row.task}'", row.data, data.get(row.task)),
            ):
                if found != wanted:
                    raise InputError(
                        f"{where}: the row is of another {what} ({found!r}) than this sweep ({wanted!r}); take it out"
                    )
            rows[row.key] = row
        return rows

    def take_out_unfounded(self) -> None:
        """Leave out rows whose items are not all there: these sub-models are measured anew, if they are named again."""
        lost = [row for row in self.rows.values() if not self.known[row.task].has_all(row.spec)]
        if not lost:
            return
        for row in lost:
            del self.rows[row.key]
        write_whole(self.directory / ROWS_FILE, as_lines(self.rows.values()))
        names = ", ".join(dict.fromkeys(row.spec.name for row in lost))
        tasks = ", ".join(dict.fromkeys(row.task for row in lost))
        print(
            f"'{self.directory}': items of {tasks} are not all there, so rows of {names} are taken out, to be measured"
            " anew",
            file=sys.stderr,
        )

    def items(self, task: Task) -> Items:
        """What was found of a task's items."""
        return self.known[task.name]

    def items_path(self, task: str) -> Path:
        """Where a task's items are; its name may be one that no file can bear."""
        return self.directory / ITEMS / f"{quote(task, safe=' ')}.jsonl"

    def add(self, rows: Sequence[Row]) -> None:
        """Put rows on the disk.

        Raises:
            CheckpointError: They cannot be written.
        """
        append(self.directory / ROWS_FILE, as_lines(rows))
        self.rows |= {row.key: row for row in rows}

    def close(self) -> None:
        """Leave the directory to whoever wants to go on with it."""
        self.lock.close()


def as_lines(rows: Iterable[Row]) -> str:
    """Rows as they stand in their file."""
    return "".join(json.dumps(row.record(), allow_nan=False) + "\n" for row in rows)


def taken(directory: Path) -> str:
    """What to say where another process sweeps."""
    return f"a sweep or a search is going on in '{directory}'; choose another directory"
