# SPDX-License-Identifier: Apache-2.0
"""How annotations are checked while tests run: by beartype, with an int where a float is asked for, as in PEP 484.

To hold all arguments and results against their shapes takes longer than all that tiny models compute. So in every
test the first calls of each function are checked, which come from all layers of a model, and one in some later calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

FIRST, ONE_IN = 12, 32  # calls of a function in a test: the first ones, and then one in so many

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
checked_always = jaxtyping.jaxtyped
began = [0]  # how many tests


def checked_at_times(*, typechecker: Any) -> Callable[[Any], Any]:
    """What jaxtyping's hook decorates all functions and dataclasses with, in the place of its own."""

    def decorate(given: Any) -> Any:
        if isinstance(given, type):
            made_by = given.__init__
            checked = checked_always(given, typechecker=typechecker)
            if checked.__init__ is not made_by:
                checked.__init__ = at_times(made_by, checked.__init__)
            return checked
        checked = checked_always(given, typechecker=typechecker)
        return at_times(given, checked) if callable(given) and callable(checked) else checked

    return decorate


def at_times(plain: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """The checked function or the plain one, by how often it was called in this test."""
    test, calls = -1, 0

    @functools.wraps(plain)
    def called(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal test, calls
        if torch.compiler.is_compiling():
            return plain(*args, **kwargs)
        if test != began[0]:
            test, calls = began[0], 0
        calls += 1
        return (checked if calls <= FIRST or calls % ONE_IN == 0 else plain)(*args, **kwargs)

    return called


jaxtyping.jaxtyped = checked_at_times
