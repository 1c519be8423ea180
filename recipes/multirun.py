# SPDX-License-Identifier: Apache-2.0
"""A command line that asks for several jobs: all of them are run, whatever becomes of some, and all are accounted for.

Hydra's sweepers choose what jobs have and hand them to a launcher, which gives all up for one that goes wrong. So a
``Launching`` stands between them: it knows every job before it begins, and goes on where a launcher would not.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.core.utils import JobStatus as HydraStatus
from hydra.plugins.launcher import Launcher

from recipes.job_records import (
    JOBS_FILE,
    NOTES,
    WRONG,
    Ended,
    JobStatus,
    Planned,
    best_line,
    line_of,
    read_notes,
    replace_lines,
    summary,
)
from recipes.jobs import FAILED, JOBLIB, SUBMITIT

BEGUN: dict[str, Multirun] = {}  # those that this process has started; other processes find none here


@dataclass
class Multirun:
    """The jobs of a command line.

    Args:
        command: What repeats a job, given Hydra's words for it.
        gives: What the recipe's number is, for searches; None if it gives none.
        writes: Whether this process is to write down what happens, being the first of those that do the same.
        directory: Where; known when the first jobs are.
        largest: Whether a search is after the largest value; None if nothing is searched.
    """

    command: Callable[[Sequence[str]], str]
    gives: str | None
    writes: bool
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    directory: Path | None = None
    largest: bool | None = None
    planned: dict[int, Planned] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)

    def plan(self, job_overrides: Sequence[Sequence[str]], first: int) -> None:
        """Know of jobs that are about to be launched."""
        for number, overrides in enumerate(job_overrides, start=first):
            self.planned[number] = Planned(overrides=list(overrides), command=self.command(overrides))

    def take(self, ended: Ended) -> Ended:
        """Know how a job ended, which in a search it has not done well without a number."""
        if self.largest is not None and ended.status is JobStatus.done and ended.value is None:
            message = f"it found no number to go by, which is {self.gives}"
            ended = dataclasses.replace(ended, status=JobStatus.failed, exit_status=FAILED, message=message)
        self.ended[ended.job] = ended
        self.write()
        return ended

    def all(self) -> list[Ended]:
        """How every job ended that is known of, in their order."""
        notes = {} if self.directory is None else read_notes(notes_of(self.directory, self.name))
        return [self.about(number, notes.get(number)) for number in sorted(self.planned)]

    def about(self, number: int, noted: Ended | None) -> Ended:
        """How a job ended; a process of it that failed counts more than one that did not."""
        found = self.ended.get(number)
        if found is None or (noted is not None and noted.status in WRONG and found.status not in WRONG):
            return noted or found or Ended(job=number, status=JobStatus.not_begun)
        return found

    def write(self) -> None:
        """Bring ``jobs.jsonl`` up to what is known; lines of other multiruns stay."""
        if self.writes and self.directory is not None:
            lines = [line_of(self.name, self.planned[ended.job], ended) for ended in self.all()]
            replace_lines(self.directory / JOBS_FILE, self.name, lines)

    def close(self, *, stopped: bool) -> list[str]:
        """Account for every job; give the lines that say so.

        Args:
            stopped: Whether the rest was given up on purpose, as by Ctrl-C.
        """
        if self.directory is None or not self.planned:
            return []
        unheard = JobStatus.interrupted if stopped else JobStatus.lost  # of what runs nobody waits for any more
        for told in self.all():
            is_left = told.status is JobStatus.running
            self.ended[told.job] = dataclasses.replace(told, status=unheard) if is_left else told
        self.write()
        if not self.writes:
            return []
        shutil.rmtree(notes_of(self.directory, self.name), ignore_errors=True)
        if is_empty(self.directory / NOTES):
            (self.directory / NOTES).rmdir()
        lines = summary(self.planned, self.ended.values(), self.directory / JOBS_FILE)
        if self.largest is not None:
            lines += best_line(self.planned, self.ended.values(), largest=self.largest)
        return lines

    @property
    def exit_status(self) -> int:
        """That of the first job that went wrong; 0 if none did."""
        wrong = [ended for _, ended in sorted(self.ended.items()) if ended.status in WRONG]
        return next((FAILED if ended.exit_status is None else ended.exit_status for ended in wrong), 0)


def notes_of(directory: Path, name: str) -> Path:
    """Where the jobs of a multirun leave their notes."""
    return directory / NOTES / name


def is_empty(directory: Path) -> bool:
    """Whether a directory is there and holds nothing."""
    return directory.is_dir() and not any(directory.iterdir())


@dataclass
class Launching:
    """A launcher of Hydra's that gives up no job for another; as ``hydra.plugins.launcher.Launcher`` to sweepers."""

    launcher: Launcher
    multirun: Multirun

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs, and give what came of each: its number, or None of one that went wrong."""
        jobs = dict(enumerate(map(list, job_overrides), start=initial_job_idx))
        self.multirun.plan(job_overrides, initial_job_idx)
        self.multirun.write()
        returned: dict[int, JobReturn] = {}
        while left := [number for number in jobs if number not in returned]:
            several = consecutive(left)
            try:
                found = self.launcher.launch([jobs[number] for number in several], initial_job_idx=several[0])
                returned |= dict(zip(several, map(self.told, found), strict=True))
            except (KeyboardInterrupt, SystemExit) as error:
                cancel(submitted(error))
                raise
            except Exception as error:
                returned |= self.saved(several, error)
        return [returned[number] for number in jobs]

    def told(self, found: JobReturn) -> JobReturn:
        """What a sweeper is told of a job that came back."""
        ended = found.return_value
        assert isinstance(ended, Ended), "jobs say how they ended"
        ended = self.multirun.take(ended)
        found.return_value = ended.value if ended.status is JobStatus.done else None
        return found

    def saved(self, several: Sequence[int], error: Exception) -> dict[int, JobReturn]:
        """What a sweeper is told of jobs that a launcher gave up, as processes were killed; of others nothing yet.

        Raises:
            Exception: What it was given, if it is about something else.
        """
        if jobs := submitted(error):
            return {number: self.outcome(number, job) for number, job in zip(several, jobs, strict=True)}
        notes = read_notes(notes_of(self.multirun.directory or Path(), self.multirun.name))
        begun = [number for number in several if number in notes]
        if type(error).__name__ != "TerminatedWorkerError" or not begun:
            raise error
        for number in begun:
            told = notes[number]
            if told.status is JobStatus.running:
                message = f"a process of hydra/launcher={JOBLIB} was killed, and with it all that ran beside it"
                told = dataclasses.replace(told, status=JobStatus.lost, message=message)
            self.multirun.take(told)
        return {number: JobReturn(status=HydraStatus.COMPLETED) for number in begun}

    def outcome(self, number: int, job: Any) -> JobReturn:
        """Wait for a job that was submitted, and for nothing it may have been."""
        try:
            return self.told(job.results()[0])
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log = str(job.paths.stderr)
            self.multirun.take(Ended(job=number, status=JobStatus.lost, message=reason.strip(), log=log))
            return JobReturn(status=HydraStatus.COMPLETED)


def consecutive(numbers: Sequence[int]) -> list[int]:
    """The first of the numbers, and those that follow one upon another: launchers count from a first one."""
    return [number for at, number in enumerate(numbers) if number == numbers[0] + at]


def submitted(error: BaseException) -> list[Any]:
    """The jobs that a submitit launcher was waiting for when it was left; they stand nowhere but in its frame."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        jobs = frame.f_locals.get("jobs")
        if frame.f_code.co_name == "launch" and f"{SUBMITIT}_launcher" in frame.f_code.co_filename and jobs:
            return list(jobs)
    return []


def cancel(jobs: Sequence[Any]) -> None:
    """Ask jobs that were submitted to end."""
    for job in jobs:
        job.cancel(check=False)


@contextmanager
def launching(multirun: Multirun) -> Iterator[None]:
    """Have what Hydra launches in this block launched for ``multirun``."""
    original = Plugins.instantiate_launcher

    def instantiate(self: Plugins, hydra_context: Any, task_function: Any, config: Any) -> Any:
        launcher = original(self, hydra_context, task_function, config)
        multirun.directory = Path(str(config.hydra.sweep.dir))
        if config.hydra.runtime.choices.get("hydra/sweeper") != "basic":
            multirun.largest = str(config.hydra.sweeper.get("direction", "")).endswith("maximize")
        return Launching(launcher, multirun)

    Plugins.instantiate_launcher = instantiate
    BEGUN[multirun.name] = multirun
    try:
        yield
    finally:
        Plugins.instantiate_launcher = original
        del BEGUN[multirun.name]


def account(multirun: Multirun, *, status: int, stopped: bool, silent: bool) -> int:
    """Say how the jobs of a multirun ended, on the screen unless ``silent``; give the exit status."""
    lines = multirun.close(stopped=stopped)
    if lines and not silent:
        print("\n".join(lines), file=sys.stderr)
    return status or multirun.exit_status
