# SPDX-License-Identifier: Apache-2.0
"""How long rows are, in tokens, and how their lengths are spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.mixture import Picked
from trainer.data.supervise import TokenRow
from trainer.data.token_cache import KeptRows

FIRST_EDGE = 16  # tokens; rows of fewer are all one bar


@dataclass(frozen=True)
class Spread:
    """The lengths of some rows in a few numbers; every one is the length of a row, but for the mean."""

    num_rows: int
    min: int
    median: int
    p90: int
    p99: int
    max: int
    mean: float
    total: int

    @classmethod
    def of(cls, lengths: Sequence[int] | np.ndarray) -> Spread:
        """That of ``lengths``, of which there must be one at least."""
        values = np.asarray(lengths, dtype=np.int64)
        # A length that some row has: so many of the rows are no longer than it.
        median, p90, p99 = (int(value) for value in np.quantile(values, (0.5, 0.9, 0.99), method="inverted_cdf"))
        return cls(
            len(values), int(values.min()), median, p90, p99, int(values.max()), float(values.mean()),
            int(values.sum()),
        )  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """How many rows have ``first`` to ``last`` tokens."""

    first: int
    last: int
    num_rows: int


def bars(lengths: Sequence[int] | np.ndarray) -> Iterator[Bar]:
    """A histogram: bars that are each twice as wide as the one before, from the shortest row to the longest."""
    values = np.sort(np.asarray(lengths, dtype=np.int64))
    if not len(values):
        return
    first, last = 1, FIRST_EDGE
    while first <= values[-1]:
        below, upto = np.searchsorted(values, (first, last + 1))
        if upto > 0:  # nothing is shorter than the first bar that is shown
            yield Bar(first, last, int(upto - below))
        first, last = last + 1, 2 * last


def lengths_of(rows: Sequence[TokenRow]) -> np.ndarray:
    """The tokens of every row; of rows on disk without reading any."""
    if isinstance(rows, Picked):
        return lengths_of(rows.rows)[np.asarray(rows.order, dtype=np.int64)]
    if isinstance(rows, KeptRows):
        return rows.lengths()
    return np.array([len(row.ids) for row in rows], dtype=np.int64)
