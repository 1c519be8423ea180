# SPDX-License-Identifier: Apache-2.0
"""Work done before it is asked for, by threads: reading images and sound while the model computes.

Who asks always gets what ``make`` gives for that number, error included; the threads only change when it is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from model.layers.embedding import HostTable
from trainer.data.batch import Batch

T = TypeVar("T")


def with_table_rows(batch: Batch, table: HostTable | None) -> Batch:
    """A batch with the rows of the per-layer table that its tokens need, where the table is not on the device."""
    if table is None:
        return batch
    inputs = dataclasses.replace(batch.inputs, per_layer_rows=table.gather(batch.inputs.ids))
    return dataclasses.replace(batch, inputs=inputs)


class Ahead(Generic[T]):
    """The values of a function of a whole number, which will be asked for in steps of ``stride``.

    Args:
        make: Gives the value; called by several threads at a time.
        stride: From one number that is asked for to the next.
        end: The first number that will not be asked for.
        workers: Threads, and how many values are made ahead; 0 makes each when it is asked for.
    """

    def __init__(self, make: Callable[[int], T], *, stride: int = 1, end: int, workers: int) -> None:
        self.make = make
        self.stride = stride
        self.end = end
        self.workers = workers
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="read ahead") if workers else None
        self.begun: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        """The value at ``number``; raises what making it raised."""
        if self.pool is None:
            return self.make(number)
        last = min(self.end, number + (self.workers + 1) * self.stride)
        wanted = range(number, max(last, number + 1), self.stride)
        # What is no longer wanted, because someone jumped, is given up.
        for other in self.begun.keys() - set(wanted):
            self.begun.pop(other).cancel()
        for one in wanted:
            if one not in self.begun:
                self.begun[one] = self.pool.submit(self.make, one)
        return self.begun.pop(number).result()

    def close(self) -> None:
        """Stop the threads; what they were making is lost."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
