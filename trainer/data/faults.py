# SPDX-License-Identifier: Apache-2.0
"""Rows that cannot be used, told all together: the first of them in full, the others by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import InputError

NUM_SHOWN = 20  # faults; more would scroll the first ones away
MEND = "mend or remove them"
MEND_OR_SKIP = f"{MEND}, or leave them out with data.on_bad_row=skip"


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used: its place, and ``field: found …; expected …``."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def in_lines(faults: Sequence[Fault]) -> list[str]:
    """The first of ``faults``, a line each, and how many more there are."""
    more = [f"… and {len(faults) - NUM_SHOWN} more"] if len(faults) > NUM_SHOWN else []
    return [*map(str, faults[:NUM_SHOWN]), *more]


def raise_faults(faults: Sequence[Fault], *, total: int, remedy: str = MEND) -> None:
    """Raise InputError with the first of ``faults`` and the number of all, if there are any."""
    if faults:
        lines = "\n".join(["", *in_lines(faults)])
        raise InputError(f"data: {len(faults)} of {total} rows cannot be used; {remedy}{lines}")
