# SPDX-License-Identifier: Apache-2.0
"""How a recipe becomes a program: Hydra composes its config, the recipe runs.

What a user can mend is said in a line that begins with ``error:``, and the exit status is 2. Anything else
that goes wrong is ours, and comes with its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from model.errors import ConfigError
from recipes.cli import INTERRUPTED, spoken
from recipes.job_records import Ended, JobStatus
from recipes.jobs import (
    TERMINATED,
    Attempt,
    attempted,
    explain_launcher,
    rank_of_process,
    refuse_launcher,
    refuse_search,
    run_elsewhere,
    status_of,
    text_in,
)
from recipes.multirun import BEGUN, Multirun, account, launching, notes_of
from recipes.quoting import is_override, quote_free_text, refuse_repeated
from recipes.repeating import command_of, is_swept, swept_words
from recipes.schema import register_schema
from recipes.wording import FROM_DISK, REFUSALS, check_keys, explain, explain_missing, explain_override

FULL_ERROR = "HYDRA_FULL_ERROR"
REFUSED = 2  # exit status
CLOSED = 141  # as of shells: a closed pipe
SEVERAL_PROCESSES = "LOCAL_RANK"  # what launchers of distributed runs set
Complete = Callable[[DictConfig, Sequence[str]], DictConfig]


@dataclass(frozen=True)
class Asked:
    """What a command line asks for; as ``start``.

    Args:
        shows_all: Whether errors are to come with their traceback, whoever can mend them.
    """

    name: str
    schema: type
    run: Callable[[Any], float | None]
    arguments: Sequence[str]
    complete: Complete | None
    shows_all: bool

    def do(self, cfg: DictConfig) -> Attempt:
        """Run the recipe with this config; say what came of it, and what is wrong with the config."""
        try:
            check_keys(cfg)
            if self.complete is not None:
                cfg = self.complete(cfg, HydraConfig.get().overrides.task)
            if missing := OmegaConf.missing_keys(cfg):
                raise ConfigError(explain_missing(missing, recipe=self.name))
            with leaving_when_closed():  # here: of errors that leave a job, Hydra prints a line
                value = self.run(OmegaConf.to_object(cfg))
        except (*REFUSALS, *FROM_DISK) as error:
            if self.shows_all:
                raise
            return Attempt(REFUSED, explain(error, recipe=self.name, schema=self.schema))
        return Attempt(0, value=value)

    def do_one_of_several(self, cfg: DictConfig, multirun: str) -> Ended:
        """Run the recipe with this config as a job of the multirun of that name, and say how it ended."""
        hydra_cfg = HydraConfig.get()
        number, overrides = hydra_cfg.job.num, hydra_cfg.overrides.task
        known = Ended(job=number, status=JobStatus.running, output=output_of(cfg))
        words = " ".join(swept_words(overrides, self.arguments, self.schema))
        said = f"job {number} ({words}): " if words else f"job {number}: "
        if (here := BEGUN.get(multirun)) is None:
            notes, launcher = notes_of(Path(hydra_cfg.sweep.dir), multirun), hydra_cfg.runtime.choices["hydra/launcher"]
            return run_elsewhere(notes, known, lambda: self.do(cfg), launcher=launcher, said=said)
        ended, leaving = attempted(lambda: self.do(cfg), known, said=said)
        here.take(ended)
        if leaving is not None:
            raise leaving
        return ended

    def explain(self, error: Exception) -> str | None:
        """What is wrong, if it came up outside of jobs and is not ours."""
        match error:
            case _ if self.shows_all:
                return None
            case _ if isinstance(error, REFUSALS):
                return explain(error, recipe=self.name, schema=self.schema)
            case ValueError() | AssertionError():
                return explain_override(error) or explain_launcher(error)
            case _:
                return explain_launcher(error)


def start(
    name: str, schema: type, run: Callable[[Any], float | None], arguments: Sequence[str], *,
    complete: Complete | None = None, gives: str | None = None,
) -> int:  # fmt: skip
    """Run a recipe with command-line arguments; return the exit status.

    Args:
        name: The recipe's, and that of its config file.
        schema: The dataclass of what it can be told.
        run: What it does, given that dataclass, filled.
        complete: Puts in what is not said but known from elsewhere; is also given the values as they were written.
        gives: What the number is that ``run`` returns, by which searches choose; None if it returns none.
    """
    register_schema(name, schema)
    asked = Asked(name, schema, run, arguments, complete, shows_all=os.environ.get(FULL_ERROR) == "1")
    multirun = Multirun(lambda passed: command_of(passed, name, arguments, schema), gives, rank_of_process() == 0)
    of_several, status = multirun.name, 0  # the name alone: jobs are sent to other processes

    def job(cfg: DictConfig) -> Ended | None:
        nonlocal status
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return asked.do_one_of_several(cfg, of_several)
        came = asked.do(cfg)
        if came.exit_status != 0:
            status = refuse(came.told)
        return None

    app, stopped = hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)(job), False
    try:
        refuse_launcher(arguments, swept=is_swept(arguments), several_processes=SEVERAL_PROCESSES in os.environ)
        refuse_search(arguments, name=spoken(name), gives=gives)
        hearing = unwound_when_terminated(), leaving_when_closed()
        with command_line(name, arguments, schema), hearing[0], hearing[1], launching(multirun):
            app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        stopped, status = True, INTERRUPTED
    except SystemExit as leaving:  # --help, and what argparse objects to
        stopped, status = True, status_of(leaving)
        if told := text_in(leaving):
            print(f"error: {told}", file=sys.stderr)
    except Exception as error:
        if (told := asked.explain(error)) is None:
            raise
        status = refuse(told)
    finally:
        accounted = account(multirun, status=status, stopped=stopped, silent=status == CLOSED)
    return accounted


def output_of(cfg: DictConfig) -> str | None:
    """The directory or file that a recipe is to write, by the keys that recipes have for it."""
    for key in ("trainer.output", "output"):
        with suppress(OmegaConfBaseException):  # what is wrong with it is told by the job
            if (found := OmegaConf.select(cfg, key)) is not None:
                return str(found)
    return None


def refuse(message: str) -> int:
    """Say what is wrong with what was asked for."""
    print(f"error: {message}", file=sys.stderr)
    return REFUSED


@contextmanager
def leaving_when_closed() -> Iterator[None]:
    """Let the program end without a word when whoever read its output has seen enough."""
    try:
        yield
        sys.stdout.flush()  # what is short breaks no pipe before this
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED)


@contextmanager
def unwound_when_terminated() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, so that nothing half-written is left; by default it ends at once.

    Not in a distributed run: a process that waits for the others would never hear of it.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or SEVERAL_PROCESSES in os.environ or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def command_line(name: str, arguments: Sequence[str], schema: type) -> Iterator[None]:
    """Hydra reads ``sys.argv``, and lets exceptions through only if it is told to show them in full."""
    argv, full_error = sys.argv, os.environ.get(FULL_ERROR)
    refuse_repeated(arguments)
    # Hydra's parser takes values on one side of its flags only; a user may put them on both.
    swept = is_swept(arguments)
    overrides = [quote_free_text(word, schema, swept=swept) for word in arguments if is_override(word)]
    sys.argv = [f"matslice {name}", *overrides, *(word for word in arguments if not is_override(word))]
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = full_error
