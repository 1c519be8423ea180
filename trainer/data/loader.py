# SPDX-License-Identifier: Apache-2.0
"""The order of the data: a pure function of (seed, epoch), the same for every number of processes.

Rows lie in packs, one in each where nothing is packed. Epochs follow each other in one endless line of packs. A
micro-batch takes the next ``batch_size`` packs per process, each process its own share, and may reach over the end of
an epoch. A position in the line is all there is to remember.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from trainer.data.batch import Batch
from trainer.data.collate import Collator
from trainer.data.pack import Packs, alone
from trainer.data.supervise import TokenRow
from trainer.seeding import seeded


@runtime_checkable
class Batches(Protocol):
    """What training takes from data, whether all of them are there (``Loader``) or come by and by (``stream``)."""

    batch_size: int
    collator: Collator

    def epoch(self, position: int) -> float:
        """How many times the data has been gone through when ``position`` packs have been taken."""
        ...

    def take(self, position: int, *, process: int = 0) -> list[TokenRow]:
        """The rows of ``process`` in the micro-batch that starts at ``position``."""
        ...

    def batch(self, position: int, *, process: int = 0) -> Batch:
        """The batch of those rows; may be called by several threads at a time."""
        ...

    def state_at(self, position: int) -> dict[str, Any] | None:
        """What must be known to begin there, beside the position; plain values."""
        ...

    def go_on_from(self, state: dict[str, Any] | None) -> None:
        """Begin where another loader was when it gave this; to be called before anything is taken."""
        ...

    def close(self) -> None:
        """Stop reading; nothing is taken any more."""
        ...


class Loader:
    """Micro-batches of one process, by position.

    Two processes of batch size b take, together, what one process of batch size 2b takes alone.

    Args:
        batch_size: Packs in a micro-batch of this process.
        collator: What makes a batch of packs.
        shuffle: False keeps the rows in their order in every epoch.
        packs: Which rows lie together; None leaves every row alone.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        *,
        batch_size: int,
        seed: int,
        collator: Collator,
        shuffle: bool = True,
        packs: Packs | None = None,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.collator = collator
        self.shuffle = shuffle
        self.packs = alone(len(rows)) if packs is None else packs
        self.order = lru_cache(maxsize=2)(self.draw_order)  # a micro-batch touches two epochs at most, mostly

    def epoch(self, position: int) -> float:
        """How many times the data has been gone through when ``position`` packs have been taken."""
        return position / len(self.packs)

    def draw_order(self, epoch: int) -> Sequence[int]:
        """The order of the packs in ``epoch``."""
        if not self.shuffle:
            return range(len(self.packs))
        order = list(range(len(self.packs)))
        seeded("order of the data", self.seed, epoch).shuffle(order)
        return order

    def take_packs(self, position: int, *, process: int = 0) -> list[list[TokenRow]]:
        """The packs of ``process`` in the micro-batch that starts at ``position``."""
        start, count = position + process * self.batch_size, len(self.packs)
        return [
            [self.rows[row] for row in self.packs.packs[self.order(place // count)[place % count]]]
            for place in range(start, start + self.batch_size)
        ]

    def take(self, position: int, *, process: int = 0) -> list[TokenRow]:
        """The rows in those packs."""
        return [row for pack in self.take_packs(position, process=process) for row in pack]

    def batch(self, position: int, *, process: int = 0) -> Batch:
        """Those packs, side by side; may be called by several threads at a time."""
        return self.collator.of_packs(self.take_packs(position, process=process))

    def state_at(self, position: int) -> None:
        """Nothing: the position is all there is to know."""

    def go_on_from(self, state: dict[str, Any] | None) -> None:
        """As ``state_at``."""

    def close(self) -> None:
        """Nothing is read."""
