# SPDX-License-Identifier: Apache-2.0
"""How a recipe becomes a program: Hydra composes its config, the recipe runs.

What a user can mend is said in a line that begins with ``error:``, and the exit status is 2. Anything else
that goes wrong is ours, and comes with its traceback.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from model.errors import ConfigError
from recipes.cli import INTERRUPTED
from recipes.jobs import (
    TERMINATED,
    Outcome,
    begin_sweep,
    end_sweep,
    explain_launcher,
    is_elsewhere,
    refuse_launcher,
    run_elsewhere,
)
from recipes.quoting import is_override, is_sweep, quote_free_text, refuse_repeated
from recipes.schema import register_schema
from recipes.wording import FROM_DISK, REFUSALS, check_keys, explain, explain_missing, explain_override

FULL_ERROR = "HYDRA_FULL_ERROR"
REFUSED = 2  # exit status
CLOSED = 141  # as of shells: a closed pipe
SEVERAL_PROCESSES = "LOCAL_RANK"  # what launchers of distributed runs set
SWEEPING = {"--multirun", "-m"}
Complete = Callable[[DictConfig, Sequence[str]], DictConfig]
ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")  # the characters with a meaning in Hydra's grammar


@dataclass(frozen=True)
class Asked:
    """What a command line asks for; as ``start``.

    Args:
        shows_all: Whether errors are to come with their traceback, whoever can mend them.
    """

    name: str
    schema: type
    run: Callable[[Any], None]
    arguments: Sequence[str]
    complete: Complete | None
    shows_all: bool

    def do(self, cfg: DictConfig) -> tuple[int, str]:
        """Run the recipe with this config; give the exit status, and what is wrong with the config."""
        try:
            check_keys(cfg)
            if self.complete is not None:
                cfg = self.complete(cfg, HydraConfig.get().overrides.task)
            if missing := OmegaConf.missing_keys(cfg):
                raise ConfigError(explain_missing(missing, recipe=self.name))
            with leaving_when_closed():  # here: of errors that leave a job, Hydra prints a line
                self.run(OmegaConf.to_object(cfg))
        except (*REFUSALS, *FROM_DISK) as error:
            if self.shows_all:
                raise
            return REFUSED, explain(error, recipe=self.name, schema=self.schema)
        return 0, ""

    def where(self) -> str:
        """What an error in a job begins with: a sweep goes on with its other jobs, so it says which one this was."""
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            return ""
        return f"in {' '.join(as_typed(HydraConfig.get().overrides.task, self.arguments, self.schema))}: "

    def explain(self, error: Exception) -> str | None:
        """What is wrong, if it came up outside of jobs and is not ours."""
        match error:
            case _ if self.shows_all:
                return None
            case _ if isinstance(error, REFUSALS):
                return explain(error, recipe=self.name, schema=self.schema)
            case ValueError() | AssertionError():
                return explain_override(error)
            case _:
                return explain_launcher(error)


def start(
    name: str, schema: type, run: Callable[[Any], None], arguments: Sequence[str], *, complete: Complete | None = None
) -> int:
    """Run a recipe with command-line arguments; return the exit status.

    Args:
        name: The recipe's, and that of its config file.
        schema: The dataclass of what it can be told.
        run: What it does, given that dataclass, filled.
        complete: Puts in what is not said but known from elsewhere; is also given the values as they were written.
    """
    register_schema(name, schema)
    asked = Asked(name, schema, run, arguments, complete, shows_all=os.environ.get(FULL_ERROR) == "1")
    sweep, status = begin_sweep(), 0

    def job(cfg: DictConfig) -> Outcome | None:
        nonlocal status
        if is_elsewhere(sweep):
            return run_elsewhere(sweep, HydraConfig.get().job.num, asked.where(), lambda: asked.do(cfg))
        ended, told = asked.do(cfg)
        if ended != 0:
            status = refuse(asked.where() + told)
        return None

    app = hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)(job)
    try:
        refuse_launcher(arguments, swept=is_swept(arguments), several_processes=SEVERAL_PROCESSES in os.environ)
        with command_line(name, arguments, schema), unwound_when_terminated(), leaving_when_closed():
            app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except SystemExit as leaving:  # --help, and what argparse objects to
        status = leaving.code if isinstance(leaving.code, int) else 0
    except Exception as error:
        if (told := asked.explain(error)) is None:
            raise
        status = refuse(told)
    finally:
        elsewhere = end_sweep(sweep)
        for outcome in elsewhere:
            refuse(outcome.told)
    return status or next((outcome.status for outcome in elsewhere), 0)


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


def as_typed(passed: Sequence[str], arguments: Sequence[str], schema: type) -> Iterator[str]:
    """The words of a sweep's job as its user wrote them; of those that are swept, what the job has of them."""
    whole = {
        word.partition("=")[0]: word
        for word in arguments
        if is_override(word) and not is_sweep(quote_free_text(word, schema, swept=True))
    }
    for word in passed:
        yield whole.get(word.partition("=")[0]) or ESCAPED.sub(r"\1", word)


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


def is_swept(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for several jobs."""
    return not SWEEPING.isdisjoint(arguments)
