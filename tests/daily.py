# SPDX-License-Identifier: Apache-2.0
"""Which cases of a table are tried every day: those that stand for the rest, which `make test-slow` tries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def daily(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """The cases, as parameters of a test; all but the chosen are slow."""
    every = list(cases)
    assert all(case in every for case in chosen), f"chosen, but no case: {[c for c in chosen if c not in every]}"
    return [param(case, slow=case not in chosen) for case in every]


def daily_shares(cases: Iterable[Any], *, one_in: int) -> list[Any]:
    """The same of a long table of like cases: one in so many is tried every day, from the first on."""
    return [param(case, slow=place % one_in > 0) for place, case in enumerate(cases)]


def param(case: Any, *, slow: bool) -> Any:
    """A case, which may be a tuple of several values."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow if slow else ())
