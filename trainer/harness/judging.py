# SPDX-License-Identifier: Apache-2.0
"""How a task of lm-evaluation-harness judges answers, told so that another way of judging is told in another way."""

from __future__ import annotations

import functools
import hashlib
import inspect
from pathlib import Path
from typing import Any

# What a task says that its prompts, targets and documents do not show; those are known by what they come to.
SAID = (
    "output_type", "metric_list", "filter_list", "process_results", "repeats", "generation_kwargs",
)  # fmt: skip
ITS_OWN = "lm_eval"  # the harness's own classes judge as its version does


def judging_of(task: Any) -> dict[str, Any]:
    """All that decides what an answer is worth, as JSON values; of functions the text of the file they are in."""
    config, kind = task.config, type(task)
    found = {key: told(getattr(config, key, None)) for key in SAID}
    if kind.__module__.partition(".")[0] != ITS_OWN:
        found["class"] = text_of(kind)
    return found


def told(value: Any) -> Any:
    """A value of a task's file, in which functions may stand anywhere."""
    match value:
        case dict():
            return {str(key): told(one) for key, one in value.items()}
        case list() | tuple():
            return [told(one) for one in value]
        case functools.partial():
            return [told(value.func), told(value.args), told(value.keywords)]
        case None | bool() | int() | float() | str():
            return value
        case _ if callable(value):
            return text_of(value)
        case _:
            return type(value).__qualname__


def text_of(code: Any) -> list[str]:
    """The name of a function or a class, and a hash of its file, where it calls others; without one the name alone."""
    name = getattr(code, "__qualname__", type(code).__qualname__)
    try:
        file = inspect.getsourcefile(inspect.unwrap(code)) or ""
        return [name, hashlib.sha256(Path(file).read_bytes()).hexdigest()]
    except (TypeError, OSError):
        return [name]
