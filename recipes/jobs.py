# SPDX-License-Identifier: Apache-2.0
"""One job of a multirun, wherever it runs: in this process, in another of this machine, or on a cluster (Slurm).

Hydra's launchers joblib and submitit pickle a job, send it to another process, and wait for what it returns. What goes
wrong in a job is never raised to them, because they would give up the others; a job returns how it ended.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.errors import ConfigError
from recipes.job_records import Ended, JobStatus, note

LAUNCHER = "hydra/launcher="  # how a launcher is chosen on the command line
SWEEPER = "hydra/sweeper="  # and what chooses values
SUBMITIT = "submitit"  # what the names of those begin with that submit jobs
JOBLIB = "joblib"
FAILED, TERMINATED = 1, 143  # exit statuses: of an error of ours, as Python's; of SIGTERM, as shells'
OF_SIGNALS = 128  # what those are larger than that say that somebody, or a closed pipe, ended the program


@dataclass(frozen=True)
class Attempt:
    """What came of running a recipe.

    Args:
        exit_status: As of a program.
        told: What is wrong, if something is.
        value: What the recipe gives a search to go by, if it does.
    """

    exit_status: int
    told: str = ""
    value: float | None = None


def attempted(attempt: Callable[[], Attempt], known: Ended, *, said: str) -> tuple[Ended, BaseException | None]:
    """Do the work of a job and say how it ended, whatever happens; what is wrong is also told on the screen.

    Args:
        attempt: The work.
        known: What is known of the job before.
        said: What its errors begin with.

    Returns:
        How it ended, and what ended it if it was no error: an interrupt, or a request to end the program.
    """
    begun = time.perf_counter()
    leaving, message, exit_status, value = None, "", 0, None
    try:
        came = attempt()
        exit_status, message, value = came.exit_status, came.told, came.value
        if exit_status != 0:
            print(f"error: {said}{message}", file=sys.stderr)
    except SystemExit as error:
        exit_status, message = status_of(error), text_in(error)
        leaving = error if exit_status > OF_SIGNALS else None
        if message:
            print(f"error: {said}{message}", file=sys.stderr)
        elif exit_status != 0:
            message = f"it ended with exit status {exit_status}"
    except KeyboardInterrupt as error:
        exit_status, leaving, message = OF_SIGNALS + signal.SIGINT, error, "it was interrupted"
    except Exception as error:
        exit_status = FAILED
        message = "".join(traceback.format_exception_only(error)).strip()
        print(f"error: {said}{traceback.format_exc().rstrip()}", file=sys.stderr)
    status = JobStatus.done if exit_status == 0 else JobStatus.failed
    ended = dataclasses.replace(
        known, status=status if leaving is None else JobStatus.interrupted, exit_status=exit_status,
        seconds=round(time.perf_counter() - begun, 3), value=value, message=message,
    )  # fmt: skip
    return ended, leaving


def status_of(leaving: SystemExit) -> int:
    """The exit status of a program that is left so: with words there is something wrong."""
    match leaving.code:
        case None:
            return 0
        case int():
            return leaving.code
        case _:
            return FAILED


def text_in(leaving: SystemExit) -> str:
    """What is said by a program that is left with words; nothing by others."""
    return "" if leaving.code is None or isinstance(leaving.code, int) else str(leaving.code)


def run_elsewhere(notes: Path, known: Ended, attempt: Callable[[], Attempt], *, launcher: str, said: str) -> Ended:
    """Do the work of a job in a process that is there for nothing else.

    Args:
        notes: Where to leave notes of it.
        known: What is known of the job before.
        attempt: The work.
        launcher: The name of Hydra's launcher that brought it here.
        said: What its errors begin with.
    """
    rank, warned = 0, None
    if launcher.startswith(SUBMITIT):
        import submitit

        environment = submitit.JobEnvironment()
        rank, warned = environment.global_rank, getattr(signal, f"SIG{environment.USR_SIG}")
        known = dataclasses.replace(known, log=str(environment.paths.stderr))
        said = ""  # its log is its own
        if environment.num_tasks > 1:  # together they are one run, as if torchrun had started them
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    note(known, notes, rank)
    with ended_by(signal.SIGTERM, warned):
        ended, leaving = attempted(attempt, known, said=said)
    if leaving is not None and known.log is not None:
        print(f"error: {ended.message}", file=sys.stderr)
    note(ended, notes, rank)
    return ended


@contextmanager
def ended_by(terminated: signal.Signals, warned: signal.Signals | None) -> Iterator[None]:
    """Let both signals end what is in the block, unless it listens for the first itself, as training does.

    The second is what a cluster sends some time before a job's time is up. submitit would start the job again from
    its beginning, in the middle of a step; a run is gone on with by ``resume=`` instead.
    """
    before = {number: signal.getsignal(number) for number in (terminated, warned) if number is not None}
    signal.signal(terminated, lambda *_: sys.exit(TERMINATED))
    if warned is not None:
        signal.signal(warned, lambda *_: signal.raise_signal(terminated))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refuse_launcher(arguments: Sequence[str], *, swept: bool, several_processes: bool) -> None:
    """Raise ConfigError if a launcher that starts processes is asked for, but would not do so.

    Args:
        arguments: Those of the command line.
        swept: Whether Hydra is asked for jobs, which alone go to launchers.
        several_processes: Whether this process is one of several that do the same.
    """
    for word in arguments:
        launches = word.startswith((LAUNCHER + SUBMITIT, LAUNCHER + JOBLIB))
        searches = word.startswith(SWEEPER) and word != f"{SWEEPER}basic"
        if not launches and not searches:
            continue
        if not swept:
            raise ConfigError(
                f"{word} {'starts' if launches else 'chooses'} the jobs of --multirun only; add --multirun, also for"
                " a single job"
            )
        if several_processes and searches:
            raise ConfigError(
                f"{word}: this is one of several processes, each of which would choose jobs of its own; start matslice"
                " without accelerate launch or torchrun"
            )
        if several_processes:
            each = ", and give each job hydra.launcher.tasks_per_node=…" if SUBMITIT in word else ""
            raise ConfigError(
                f"{word}: this is one of several processes, each of which would start all jobs; start matslice"
                f" without accelerate launch or torchrun{each}"
            )


def refuse_search(arguments: Sequence[str], *, name: str, gives: str | None) -> None:
    """Raise ConfigError if values are to be searched by a number that the recipe does not give.

    Args:
        arguments: Those of the command line.
        name: The recipe's, as its user writes it.
        gives: What its number is; None if it gives none.
    """
    for word in arguments:
        if word.startswith(SWEEPER) and word != f"{SWEEPER}basic" and gives is None:
            raise ConfigError(
                f"{word} needs a number to make small or large; matslice {name} gives none, matslice train its lowest"
                " validation loss"
            )


def explain_launcher(error: Exception) -> str | None:
    """What went wrong with a launcher or a search, as opposed to its jobs; None if the error is none of theirs."""
    if "srun" in str(error) and isinstance(error, RuntimeError):
        return (
            f"{LAUNCHER}submitit_slurm: there is no srun here; start matslice where jobs of the cluster are submitted"
        )
    if type(error).__module__.startswith(f"{SUBMITIT}."):
        return f"{LAUNCHER}{SUBMITIT}_…: {error}"
    if isinstance(error, ValueError) and str(error).startswith("No trials are completed"):
        return f"{SWEEPER}optuna: no job gave a number, so none is best"
    if isinstance(error, RuntimeError) and "`Study.stop` is supposed" in str(error):
        return f"{SWEEPER}optuna: the last job of a grid failed, which it cannot end with; all jobs were run"
    return None


def rank_of_process() -> int:
    """This process's number among those that launchers of distributed runs started; 0 if it is alone."""
    return int(os.environ.get("RANK", "0"))
