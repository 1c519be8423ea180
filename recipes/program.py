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
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from model.errors import ConfigError
from recipes.schema import register_schema
from recipes.wording import FROM_DISK, REFUSALS, check_keys, explain, explain_missing, explain_override

FULL_ERROR = "HYDRA_FULL_ERROR"
REFUSED = 2  # exit status
INTERRUPTED, CLOSED, TERMINATED = 130, 141, 143  # as of shells: Ctrl-C, a closed pipe, kill
SEVERAL_PROCESSES = "LOCAL_RANK"  # what launchers of distributed runs set
FREE_TEXT = ("prompt", "system")  # keys whose value is meant to the letter
IN_A_SLICE = ("row", "csv")  # keys within a slice whose value is a name or a file
FILES = ("image", "audio")  # keys whose value is a file name, or a list of them
# One of a list: in quotes as Hydra has them, or as it is up to a comma, unless that is written \,
IN_A_LIST = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?:\\,|[^,])*?)\s*(?:,|\Z)""", re.DOTALL)


def start(name: str, schema: type, run: Callable[[Any], None], arguments: Sequence[str]) -> int:
    """Run a recipe with command-line arguments; return the exit status.

    Args:
        name: The recipe's, and that of its config file.
        schema: The dataclass of what it can be told.
        run: What it does, given that dataclass, filled.
    """
    register_schema(name, schema)
    status = 0

    def job(cfg: DictConfig) -> None:
        nonlocal status
        try:
            check_keys(cfg)
            if missing := OmegaConf.missing_keys(cfg):
                raise ConfigError(explain_missing(missing, recipe=name))
            run(OmegaConf.to_object(cfg))
        except (*REFUSALS, *FROM_DISK) as error:
            if wants_traceback or isinstance(error, BrokenPipeError):
                raise
            # A sweep goes on with its other jobs, so it says which one this was.
            swept = HydraConfig.get().mode is RunMode.MULTIRUN
            where = f"in {' '.join(HydraConfig.get().overrides.task)}: " if swept else ""
            status = refuse(where + explain(error, recipe=name, schema=schema))

    wants_traceback = os.environ.get(FULL_ERROR) == "1"
    app = hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)(job)
    try:
        with command_line(name, arguments), unwound_when_terminated():
            app()
    except REFUSALS as error:
        if wants_traceback:
            raise
        return refuse(explain(error, recipe=name, schema=schema))
    except (ValueError, AssertionError) as error:
        if wants_traceback or (told := explain_override(error)) is None:
            raise
        return refuse(told)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except SystemExit as leaving:  # --help, and what argparse objects to
        return leaving.code if isinstance(leaving.code, int) else 0
    return status


def refuse(message: str) -> int:
    """Say what is wrong with what was asked for."""
    print(f"error: {message}", file=sys.stderr)
    return REFUSED


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
def command_line(name: str, arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv``, and lets exceptions through only if it is told to show them in full."""
    argv, full_error = sys.argv, os.environ.get(FULL_ERROR)
    refuse_repeated(arguments)
    # Hydra's parser takes values on one side of its flags only; a user may put them on both.
    overrides = [quote_free_text(word) for word in arguments if is_override(word)]
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


def is_override(word: str) -> bool:
    """Whether a word of the command line is a value, and no flag or flag's argument."""
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def quote_free_text(argument: str) -> str:
    """Spare the user Hydra's grammar where any character may be part of the value."""
    key, equals, value = argument.partition("=")
    if key.partition(".")[0] in ("slice", "sizes") and key.rpartition(".")[2] in IN_A_SLICE and value[:1] not in "'\"":
        return f"{key}={quote(value)}" if equals and value not in ("", "null") else argument
    if key not in (*FREE_TEXT, *FILES) or not equals or value == "null":
        return argument
    if key in FILES and value.startswith("[") and value.endswith("]"):
        return f"{key}=[{','.join(quoted_items(value[1:-1]))}]"
    return f"{key}={quote(value)}"


def quoted_items(written: str) -> Iterator[str]:
    """What stands between commas, each as Hydra's command line takes it, to the letter."""
    at = 0
    while at < len(written):
        found = IN_A_LIST.match(written, at)
        assert found is not None, "anything matches up to a comma or the end"
        item, at = found[1], found.end()
        yield item if item[:1] in ("'", '"') and item[-1:] == item[:1] != item else quote(item.replace("\\,", ","))


def refuse_repeated(arguments: Sequence[str]) -> None:
    """Raise ConfigError if files are given twice, of which Hydra would take the last ones without a word."""
    for key in FILES:
        given = [word.removeprefix(f"{key}=") for word in arguments if word.startswith(f"{key}=")]
        if len(given) > 1:
            items = [value[1:-1] if value.startswith("[") and value.endswith("]") else value for value in given]
            raise ConfigError(f"{key} is given {len(given)} times; give several files as {key}=[{','.join(items)}]")


def quote(value: str) -> str:
    """A text as Hydra's command line takes it, to the letter."""
    # In Hydra's quotes a backslash counts only before a quote or the end; ${ would be a reference.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return f'"{value}"'
