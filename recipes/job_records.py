# SPDX-License-Identifier: Apache-2.0
"""How the jobs of a multirun ended: what each says of itself, ``jobs.jsonl``, and the lines at the end.

A job in another process leaves a note when it begins and another when it ends, in the multirun's directory, which it
can reach wherever it runs. Of a job that was killed there is the first only.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainer.locking import waiting_for

JOBS_FILE = "jobs.jsonl"
LOCK = ".jobs.lock"  # beside it: one multirun writes at a time
NOTES = ".jobs"  # the directory of notes, while jobs run


class JobStatus(StrEnum):
    """How a job ended, if it did."""

    done = "done"
    failed = "failed"
    interrupted = "interrupted"
    lost = "lost"
    running = "running"
    not_begun = "not_begun"


IN_WORDS = {
    JobStatus.done: "done", JobStatus.failed: "failed", JobStatus.interrupted: "interrupted",
    JobStatus.lost: "ended without a word", JobStatus.running: "running", JobStatus.not_begun: "not begun",
}  # fmt: skip
WRONG = (JobStatus.failed, JobStatus.interrupted, JobStatus.lost)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a job says of itself.

    Args:
        job: Its number in the multirun.
        status: How it ended.
        exit_status: As of a program; None if it has not ended, or nobody knows.
        seconds: Wall time.
        output: The directory it writes, if its recipe has one.
        value: What a search is to make small or large, if its recipe gives something.
        message: What is wrong, if something is.
        log: The file of its errors, if that is not the terminal.
    """

    job: int
    status: JobStatus
    exit_status: int | None = None
    seconds: float | None = None
    output: str | None = None
    value: float | None = None
    message: str = ""
    log: str | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is known of a job before it begins: Hydra's words for it, and the command line that repeats it."""

    overrides: Sequence[str]
    command: str


def note(ended: Ended, notes: Path, rank: int) -> None:
    """Leave a note of a job, in the place of an earlier one; ``rank`` is that of its process."""
    notes.mkdir(parents=True, exist_ok=True)
    place = notes / f"{ended.job}.{rank}.json"
    half = place.with_suffix(".half")
    half.write_text(json.dumps(dataclasses.asdict(ended)), encoding="utf-8")
    os.replace(half, place)


def read_notes(notes: Path) -> dict[int, Ended]:
    """What jobs left, by number; of a job of several processes the first that something is wrong with."""
    found: dict[int, Ended] = {}
    for place in sorted(notes.glob("*.json")):
        values: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        values["status"] = JobStatus(values["status"])
        told = Ended(**values)
        before = found.get(told.job)
        if before is None or (before.status not in WRONG and told.status in WRONG):
            found[told.job] = told
    return found


def line_of(multirun: str, planned: Planned, ended: Ended) -> str:
    """A line of ``jobs.jsonl``."""
    told = dataclasses.asdict(ended)
    record = {"multirun": multirun, "job": told.pop("job"), "overrides": list(planned.overrides), **told}
    return json.dumps(record | {"command": planned.command}, ensure_ascii=False) + "\n"


def replace_lines(file: Path, multirun: str, lines: Sequence[str]) -> None:
    """Write the lines of a multirun below those of others that ``file`` holds, in the place of older ones of it.

    Several multiruns may do so at once.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with waiting_for(file.with_name(LOCK)):
        before = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        others = [line for line in before if not line.startswith(f'{{"multirun": "{multirun}"')]
        half = file.with_name(f".{file.name}.{multirun}")
        half.write_text("".join([*others, *lines]), encoding="utf-8")
        os.replace(half, file)


def summary(planned: dict[int, Planned], ended: Iterable[Ended], file: Path) -> list[str]:
    """How many jobs ended how, and of each that something is wrong with what, and what repeats it; as lines."""
    found = sorted(ended, key=lambda one: one.job)
    counts = Counter(one.status for one in found)
    told = ", ".join(f"{counts[status]} {IN_WORDS[status]}" for status in JobStatus if counts[status])
    lines = [f"{len(found)} job{'s' if len(found) != 1 else ''}: {told}; {file}"]
    for one in found:
        if one.status in WRONG:
            log = f" (its log: {one.log})" if one.log else ""
            message = f": {one.message}" if one.message else ""
            lines += [f"job {one.job} {IN_WORDS[one.status]}{message}{log}", f"  {planned[one.job].command}"]
    return lines


def best_line(planned: dict[int, Planned], ended: Iterable[Ended], *, largest: bool) -> list[str]:
    """The job with the lowest value, or the highest, as lines; none if no job has any."""
    found = [(one.value, one.job) for one in ended if one.status is JobStatus.done and one.value is not None]
    if not found:
        return []
    value, job = max(found) if largest else min(found)
    return [f"best: {value:g}, of job {job}", f"  {planned[job].command}"]
