# SPDX-License-Identifier: Apache-2.0
"""The order of the data: a pure function of (seed, epoch), the same for every number of processes.

Epochs follow each other in one endless line of rows. A micro-batch takes the next ``batch_size`` rows per
process, each process its own share, and may reach over the end of an epoch. A position in the line is all
there is to remember.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from trainer.data.batch import Batch
from trainer.data.collate import Collator
from trainer.data.supervise import TokenRow
from trainer.seeding import seeded


class Loader:
    """Micro-batches of one process, by position.

    Two processes of batch size b take, together, what one process of batch size 2b takes alone.

    Args:
        batch_size: Rows in a micro-batch of this process.
        collator: What makes a batch of rows.
        shuffle: False keeps the rows in their order in every epoch.
    """

    def __init__(
        self, rows: Sequence[TokenRow], *, batch_size: int, seed: int, collator: Collator, shuffle: bool = True
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.collator = collator
        self.shuffle = shuffle
        self.order = lru_cache(maxsize=2)(self.draw_order)  # a micro-batch touches two epochs at most, mostly

    def epoch(self, position: int) -> float:
        """How many times the data has been gone through when ``position`` rows have been taken."""
        return position / len(self.rows)

    def draw_order(self, epoch: int) -> Sequence[int]:
        """The order of the rows in ``epoch``."""
        if not self.shuffle:
            return range(len(self.rows))
        order = list(range(len(self.rows)))
        seeded("order of the data", self.seed, epoch).shuffle(order)
        return order

    def take(self, position: int, *, process: int = 0) -> list[TokenRow]:
        """The rows of ``process`` in the micro-batch that starts at ``position``."""
        start = position + process * self.batch_size
        return [
            self.rows[self.order(place // len(self.rows))[place % len(self.rows)]]
            for place in range(start, start + self.batch_size)
        ]

    def batch(self, position: int, *, process: int = 0) -> Batch:
        """Those rows, side by side; may be called by several threads at a time."""
        return self.collator(self.take(position, process=process))
