# SPDX-License-Identifier: Apache-2.0
"""Jobs of a sweep that run in processes of their own, on this machine or on a cluster's (Slurm).

Hydra's submitit launcher pickles a job, sends it to such a process, and waits for what it returns. Hydra then looks
at results, but keeps them to itself. So a job returns how it ended as an ``Outcome``, which is noted where it is
unpickled, that is in the process that the sweep was started in.
"""

from __future__ import annotations

import signal
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from model.errors import ConfigError

LAUNCHER = "hydra/launcher="  # how a launcher is chosen on the command line
SUBMITIT = "submitit"  # what the names of those begin with that start processes
FAILED, TERMINATED = 1, 143  # exit statuses: of an error of ours, as Python's; of SIGTERM, as shells'


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        sweep: The name of the sweep it is of.
        number: Its own in the sweep.
        status: An exit status.
        told: What is wrong, if something is.
    """

    sweep: str
    number: int
    status: int
    told: str = ""

    def __reduce__(self) -> tuple[Callable[..., Outcome], tuple[str, int, int, str]]:
        return noted, (self.sweep, self.number, self.status, self.told)


ENDED: dict[str, list[Outcome]] = {}  # of every sweep that this process has started, how its jobs ended elsewhere


def noted(sweep: str, number: int, status: int, told: str) -> Outcome:
    """An outcome as it was, which the process that started its sweep remembers from now on."""
    outcome = Outcome(sweep, number, status, told)
    ENDED.get(sweep, []).append(outcome)
    return outcome


def begin_sweep() -> str:
    """A name for what is about to be run; jobs that go to other processes find that it was not begun there."""
    sweep = uuid.uuid4().hex
    ENDED[sweep] = []
    return sweep


def is_elsewhere(sweep: str) -> bool:
    """Whether a job of this sweep runs in another process than the one that started it."""
    return sweep not in ENDED


def end_sweep(sweep: str) -> list[Outcome]:
    """What was wrong with jobs in other processes, by number; a job of several processes is told of once."""
    wrong: dict[int, Outcome] = {}
    for outcome in ENDED.pop(sweep):
        if outcome.status != 0:
            wrong.setdefault(outcome.number, outcome)
    return [wrong[number] for number in sorted(wrong)]


def run_elsewhere(sweep: str, number: int, where: str, attempt: Callable[[], tuple[int, str]]) -> Outcome:
    """Do the work of a job in a process that is there for nothing else, and say how it ended, whatever happens.

    Args:
        sweep: The name of the sweep it is of.
        number: Its own in the sweep.
        where: What its errors begin with.
        attempt: Gives the exit status and what is wrong.
    """
    import submitit

    environment = submitit.JobEnvironment()
    if environment.num_tasks > 1:  # together they are one run, as if torchrun had started them
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    with ended_by(signal.SIGTERM, getattr(signal, f"SIG{environment.USR_SIG}")):
        try:
            status, told = attempt()
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 0
            told = f"it ended with exit status {status}"
        except KeyboardInterrupt:
            status, told = 128 + signal.SIGINT, "it was interrupted"
        except Exception:
            status, told = FAILED, traceback.format_exc()
    if status == 0:
        return Outcome(sweep, number, status)
    print(f"error: {told}", file=sys.stderr)
    return Outcome(sweep, number, status, f"{where}{told.rstrip()} (its log: {environment.paths.stderr})")


@contextmanager
def ended_by(terminated: signal.Signals, warned: signal.Signals) -> Iterator[None]:
    """Let both signals end what is in the block, unless it listens for the first itself, as training does.

    The second is what a cluster sends some time before a job's time is up. submitit would start the job again from
    its beginning, in the middle of a step; a run is gone on with by ``resume=`` instead.
    """
    before = {number: signal.getsignal(number) for number in (terminated, warned)}
    signal.signal(terminated, lambda *_: sys.exit(TERMINATED))
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
        if not word.startswith(LAUNCHER + SUBMITIT):
            continue
        if not swept:
            raise ConfigError(f"{word} starts the jobs of --multirun only; add --multirun, also for a single job")
        if several_processes:
            raise ConfigError(
                f"{word}: this is one of several processes, each of which would start all jobs; start matslice"
                " without accelerate launch or torchrun, and give each job hydra.launcher.tasks_per_node=…"
            )


def explain_launcher(error: Exception) -> str | None:
    """What went wrong with a launcher, as opposed to its jobs; None if the error is none of its."""
    if "srun" in str(error) and isinstance(error, RuntimeError):
        return (
            f"{LAUNCHER}submitit_slurm: there is no srun here; start matslice where jobs of the cluster are submitted"
        )
    if type(error).__module__.startswith(f"{SUBMITIT}."):
        return f"{LAUNCHER}{SUBMITIT}_…: {error}"
    return None
