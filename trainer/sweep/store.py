# SPDX-License-Identifier: Apache-2.0
"""The directory of a sweep: what it is a sweep of, what was found of every item, and the rows that follow.

    sweep.json              what must be the same when it goes on, and its sub-models; see trainer/sweep/identity.py
    items/TASK.jsonl        a line per batch, with what was found of its items under all sub-models measured at once
    rows.jsonl              a line per sub-model and task, once the task is finished; see trainer/sweep/row.py

Lines are added at the end, each in one piece, and are on the disk before the next batch begins. Of a sweep killed at
any moment nothing but the last line can be a piece of one; it is cut off when the sweep goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from model.checkpoint.directory import flush_entry
from model.errors import CheckpointError, ConfigError, InputError
from model.slicing.spec import SliceSpec
from trainer.checkpoint import write_whole
from trainer.evaluation.metric import Values
from trainer.evaluation.task import Task
from trainer.locking import lock
from trainer.sweep.identity import Identity, read_record, refuse_another, together
from trainer.sweep.row import Row, check_beside, lines_of

SWEEP_FILE, ROWS_FILE, ITEMS = "sweep.json", "rows.jsonl", "items"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found of one batch under all sub-models that were measured at once: a line of ``items/TASK.jsonl``.

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

    def line(self, items: Sequence[str]) -> str:
        """As it is written; ``items`` are the batch's, whose places are told beside the first key."""
        record = {
            "batch": self.batch, "items": list(items), "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes, "specs": self.found,
        }  # fmt: skip
        return json.dumps(record) + "\n"  # what is no number stands as NaN, which Python reads; rows have null for it


class Items:
    """What is there of one task.

    Args:
        path: The file, which may not be there yet.
        task: The task.

    Raises:
        CheckpointError: A line that is not the last is none of this task's.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self.path = path
        self.task = task
        self.measured: dict[str, dict[int, Measurement]] = defaultdict(dict)  # by sub-model and batch
        cut_to_whole_lines(path)
        if path.exists():
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
                self.take(line, where=f"{path}:{number}")

    def has(self, spec: SliceSpec, batch: int) -> bool:
        """Whether a batch was measured under a sub-model."""
        return batch in self.measured.get(spec.name, {})

    def add(self, measurement: Measurement) -> None:
        """Put a batch on the disk.

        Raises:
            CheckpointError: It cannot be written.
        """
        batch = self.task.batches[measurement.batch]
        line = measurement.line([self.task.items[item] for item in batch])
        append(self.path, line)
        # What counts is what a sweep that goes on would read: the same figures to the last digit.
        self.take(line, where=str(self.path))

    def take(self, line: str, *, where: str) -> None:
        """Know what a line says."""
        try:
            record = json.loads(line)
            batch = self.task.batches[record["batch"]]
            measurement = Measurement(
                batch=record["batch"], seconds=record["seconds"], peak_memory_bytes=record["peak_memory_bytes"],
                found=record["specs"],
            )  # fmt: skip
            is_of_task = record["items"] == [self.task.items[item] for item in batch] and all(
                len(found) == len(batch) for found in measurement.found.values()
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"{where}: no batch of a sweep ({error!r}); put a copy of the file back, or delete it to measure task"
                f" '{self.task.name}' anew"
            ) from None
        if not is_of_task:
            raise CheckpointError(
                f"{where}: batch {measurement.batch} has other items than task '{self.task.name}'; put a copy of the"
                " file back, or delete it to measure the task anew"
            )
        for name in measurement.found:
            if measurement.batch in self.measured[name]:
                raise CheckpointError(
                    f"{where}: batch {measurement.batch} stands above already for sub-model '{name}'; take one out"
                )
            self.measured[name][measurement.batch] = measurement

    def found(self, spec: SliceSpec) -> list[Values]:
        """What was found of every item under a sub-model that all batches were measured under."""
        measured = self.measured[spec.name]
        by_item: dict[int, Values] = {}
        for number, batch in enumerate(self.task.batches):
            by_item |= zip(batch, measured[number].found[spec.name], strict=True)
        return [by_item[item] for item in range(len(self.task.items))]


class Store:
    """The directory of a sweep, which has it to itself until ``close``.

    Args:
        directory: Where it is, or will be.
        identity: What it is a sweep of.
        specs: Its sub-models; there may be others than before, but a name means what it meant.
        resume: Whether to go on with the sweep that is there; one that measured nothing is begun anew anyhow.

    Raises:
        ConfigError: There is a sweep already, and it is not to be gone on with; or it is still running.
        CheckpointError: The sweep there is another one; the keys and both values are named.
        InputError: A row there is of another model, task or data, or is none.
    """

    def __init__(self, directory: Path, identity: Identity, specs: Sequence[SliceSpec], *, resume: bool) -> None:
        self.directory = directory
        self.identity = identity
        directory.mkdir(parents=True, exist_ok=True)
        self.lock: TextIO = lock(directory, taken(directory))
        try:
            self.claim(identity.record(specs), resume=resume)
            self.rows: dict[tuple[str, str], Row] = self.read_rows()  # finished ones, by sub-model and task
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
        return (self.directory / ROWS_FILE).exists() or any((self.directory / ITEMS).glob("*.jsonl"))

    def read_rows(self) -> dict[tuple[str, str], Row]:
        """The rows that are there, all of them this sweep's."""
        path = self.directory / ROWS_FILE
        cut_to_whole_lines(path)
        rows: dict[tuple[str, str], Row] = {}
        seen: dict[tuple[str, ...], tuple[str, Row]] = {}
        data = {task.name: task.fingerprint for task in self.identity.tasks}
        for where, row in lines_of(path) if path.exists() else ():
            check_beside(row, where, seen)
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

    def items(self, task: Task) -> Items:
        """What was found of a task's items; a last line that is none is cut off.

        Raises:
            CheckpointError: Another line is none of the task's.
        """
        return Items(self.items_path(task.name), task)

    def items_path(self, task: str) -> Path:
        """Where a task's items are; its name may be one that no file can bear."""
        return self.directory / ITEMS / f"{quote(task, safe=' ')}.jsonl"

    def add(self, rows: Sequence[Row]) -> None:
        """Put rows on the disk.

        Raises:
            CheckpointError: They cannot be written.
        """
        append(self.directory / ROWS_FILE, "".join(json.dumps(row.record(), allow_nan=False) + "\n" for row in rows))
        self.rows |= {row.key: row for row in rows}

    def close(self) -> None:
        """Leave the directory to whoever wants to go on with it."""
        self.lock.close()


def append(path: Path, lines: str) -> None:
    """Add lines to a file, and wait until they are on the disk.

    Raises:
        CheckpointError: The disk is full, or fails otherwise. What was there before is as it was.
    """
    is_new = not path.exists()
    before = 0 if is_new else path.stat().st_size
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            content = memoryview(lines.encode())
            while content:  # a nearly full disk may take a part
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        if is_new:
            flush_entry(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        free = shutil.disk_usage(path.parent.parent).free
        raise CheckpointError(
            f"{path}: results cannot be written ({error}; {free / 1e9:.2f} GB are free there); make room, and go on"
            " with resume=true: what was measured before is kept"
        ) from None


def cut_to_whole_lines(path: Path) -> None:
    """Cut off what a killed process left of a last line; a machine that lost its power may leave a damaged one."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    last = content[content.rfind(b"\n", 0, max(end - 1, 0)) + 1 : end]
    try:
        json.loads(last or b"null")
    except ValueError:
        end -= len(last)
    if end < len(content):
        os.truncate(path, end)
        flush_entry(path)


def taken(directory: Path) -> str:
    """What to say where another process sweeps."""
    return f"a sweep or a search is going on in '{directory}'; choose another directory"
