# SPDX-License-Identifier: Apache-2.0
"""A job of a multirun as a command line of its own: what its user wrote, and of what is swept what the job has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from recipes.cli import spoken
from recipes.jobs import JOBLIB, LAUNCHER
from recipes.quoting import is_override, is_sweep, places, quote, quote_free_text

SWEEPING = {"--multirun", "-m"}
PLAIN = re.compile(r"[\w./+@-]+")
OF_HYDRA = ("hydra.", "hydra/")  # what keys begin with that say how jobs are run


def is_swept(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for several jobs."""
    return not SWEEPING.isdisjoint(arguments)


def command_of(passed: Sequence[str], name: str, arguments: Sequence[str], schema: type) -> str:
    """What repeats a job if it is pasted into a shell: by itself, or where it ran, if that was submitted to.

    Args:
        passed: What Hydra gave the job, in Hydra's grammar.
        name: The recipe's.
        arguments: Those of the command line that the job comes from.
        schema: What the recipe can be told.
    """
    others = [word for word in arguments if not is_override(word) and word not in SWEEPING]
    how = [word for word in arguments if word.startswith(OF_HYDRA)]
    launchers = [word for word in how if word.startswith(LAUNCHER)]
    if launchers and not launchers[-1].endswith(("=basic", f"={JOBLIB}")):
        # The job is as large as its launcher makes it, and may need a machine that is not this one.
        others += ["--multirun", *(word for word in how if word.startswith((LAUNCHER, "hydra.launcher.")))]
    words = [word for word in words_of(passed, arguments, schema) if not word.startswith(OF_HYDRA)]
    return shlex.join(["matslice", *spoken(name).split(), *words, *others])


def words_of(passed: Sequence[str], arguments: Sequence[str], schema: type) -> Iterator[str]:
    """The words of a job, each as its user could have written it for this job alone."""
    whole = {key_of(word): word for word in not_swept(arguments, schema)}
    for word in passed:
        yield whole.get(key_of(word)) or as_written(word, schema)


def swept_words(passed: Sequence[str], arguments: Sequence[str], schema: type) -> list[str]:
    """The words that tell a job from the others."""
    whole = {key_of(word) for word in not_swept(arguments, schema)}
    return [as_written(word, schema) for word in passed if key_of(word) not in whole]


def not_swept(arguments: Sequence[str], schema: type) -> Iterator[str]:
    """The values of a command line that are the same in all jobs."""
    for word in arguments:
        if is_override(word) and not is_sweep(quote_free_text(word, schema, swept=True)):
            yield word


def key_of(word: str) -> str:
    """What a word gives a value to."""
    return word.partition("=")[0]


def as_written(passed: str, schema: type) -> str:
    """A word that Hydra gave a job, as a user writes it: places are written to the letter, all else is as it was."""
    key = key_of(passed)
    is_list = places(schema).get(key.lstrip("+"))
    if is_list is None:
        return passed
    value = OverridesParser.create().parse_override(passed).value()
    if isinstance(value, list) and is_list and all(isinstance(one, str) for one in value):
        return f"{key}=[{','.join(in_place(str(one)) for one in value)}]"
    return f"{key}={in_place(value)}" if isinstance(value, str) else passed


def in_place(value: str) -> str:
    """A place, in Hydra's quotes where it might mean something else without them."""
    return value if PLAIN.fullmatch(value) and value != "null" else quote(value, references=True)
