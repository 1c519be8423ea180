# SPDX-License-Identifier: Apache-2.0
"""Rows that cannot be used, told all together: the first of them in full, the others by number."""

from __future__ import annotations

from collections.abc import Sequence

from model.errors import InputError

NUM_SHOWN = 20  # faults; more would scroll the first ones away


def raise_faults(faults: Sequence[str], *, total: int) -> None:
    """Raise InputError with the first of ``faults`` and the number of all, if there are any."""
    if not faults:
        return
    more = [f"… and {len(faults) - NUM_SHOWN} more"] if len(faults) > NUM_SHOWN else []
    lines = "\n".join(["", *faults[:NUM_SHOWN], *more])
    raise InputError(f"data: {len(faults)} of {total} rows cannot be used; mend or remove them{lines}")
