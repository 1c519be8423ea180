# SPDX-License-Identifier: Apache-2.0
"""Data that are read while training, and not before: blocks of rows, each shuffled and packed by itself.

A block is so many rows that follow each other in their sources, or with one source what is left of it. Which rows, and
in which packs, is a pure function of the data, the seed, the block's number, and how far each source had been read. So
a place in the stream is a few numbers (``Mark``); a run goes on bit for bit wherever it stopped, and any number of
processes take their shares of the same packs. A source at its end is begun anew.

Blocks are made in order by a thread of its own, one ahead of the one that is being taken from. A few are kept; one that
is gone and is asked for is made again.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from model.errors import CheckpointError
from trainer.data.batch import Batch
from trainer.data.collate import Collator
from trainer.data.faults import NUM_SHOWN
from trainer.data.inspection import Digests
from trainer.data.pack import pack_rows
from trainer.data.stream_rows import Cursor, Reading, StreamRows
from trainer.data.supervise import TokenRow
from trainer.seeding import seeded

KEPT_BLOCKS = 3  # the one that is taken from, the next, and the last, which a step may have begun in
SEED_BITS = 63


@dataclass(frozen=True)
class Mark:
    """Where a block begins.

    Args:
        number: The block's.
        position: Packs in all blocks before it.
        cursors: How far each source has been read.
    """

    number: int
    position: int
    cursors: tuple[Cursor, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """A block that was made.

    Args:
        begin: Where it begins.
        end: Where the next one does.
        packs: In the order in which they are taken.
        reading: Its rows, in the order of the data, and what became of others.
        digest: A hash of its rows.
    """

    begin: Mark
    end: Mark
    packs: Sequence[Sequence[TokenRow]]
    reading: Reading
    digest: str


class StreamLoader:
    """Micro-batches of one process, by position, of rows that come by and by; see ``loader.Batches``.

    Args:
        rows: What is read.
        batch_size: Packs in a micro-batch of this process.
        seed: Of the run.
        collator: What makes a batch of packs.
        shuffle: False keeps rows in their order.
        budget: The most tokens that a pack may have; None leaves every row alone.
        tell: Is given what a user should know.
    """

    def __init__(
        self,
        rows: StreamRows,
        *,
        batch_size: int,
        seed: int,
        collator: Collator,
        shuffle: bool = True,
        budget: int | None = None,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.collator = collator
        self.shuffle = shuffle
        self.budget = budget
        self.tell = tell
        self.marks = [Mark(0, 0, rows.start)]  # of every block up to the first that was not made yet
        self.digests: dict[int, str] = {}  # of every block that was made
        self.blocks: OrderedDict[int, Future[Block]] = OrderedDict()  # the latest that was asked for is the last
        self.failure: Exception | None = None  # why a block cannot be made
        self.num_shown = 0  # lines about faults that were told
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="read the stream")

    def epoch(self, position: int) -> float:
        """How many times the data, of several sources the one that takes longest, has been gone through, whole times.

        How much of it is left is not known.
        """
        index = self.index_before(position)
        reached = self.marks[index : index + 2][-1]
        if position < reached.position:
            reached = self.marks[index]
        return float(min(cursor.epoch for cursor in reached.cursors))

    def take_packs(self, position: int, *, process: int = 0) -> list[Sequence[TokenRow]]:
        """The packs of ``process`` in the micro-batch that starts at ``position``."""
        start = position + process * self.batch_size
        return [self.pack(place) for place in range(start, start + self.batch_size)]

    def take(self, position: int, *, process: int = 0) -> list[TokenRow]:
        """The rows in those packs."""
        return [row for pack in self.take_packs(position, process=process) for row in pack]

    def batch(self, position: int, *, process: int = 0) -> Batch:
        """Those packs, side by side; may be called by several threads at a time."""
        return self.collator.of_packs(self.take_packs(position, process=process))

    def state_at(self, position: int) -> dict[str, Any]:
        """Where the block begins that a run at ``position`` is in or has just finished, and the hash of its rows."""
        if position > self.marks[0].position:
            self.pack(position - 1)  # of which another process may have been the only one to ask
        mark = self.marks[self.index_before(position)]
        if mark.number not in self.digests:  # nothing has been taken yet
            self.block(mark.number)
        return {
            "block": mark.number,
            "position": mark.position,
            "cursors": [[cursor.epoch, cursor.piece, cursor.row] for cursor in mark.cursors],
            "digest": self.digests[mark.number],
        }

    def go_on_from(self, state: dict[str, Any] | None) -> None:
        """Begin with the block that a run was in, which has to be what it was; None is the beginning.

        Raises:
            CheckpointError: Other rows are found there.
            InputError: The rows there cannot be read.
        """
        if state is None:
            return
        cursors = tuple(Cursor(*numbers) for numbers in state["cursors"])
        # In the thread that makes blocks: one of the beginning may just be made.
        self.pool.submit(self.begin_at, Mark(state["block"], state["position"], cursors)).result()
        if len(cursors) == len(self.rows.start) and self.block(state["block"]).digest == state["digest"]:
            return
        raise CheckpointError(
            f"data.streaming: the stream is not what it was: from {self.rows.described(cursors)} on there are other"
            " rows than when the checkpoint was written; put the data back as they were, or begin a new run from the"
            " weights of this one: fork=true trainer.output=…"
        )

    def begin_at(self, mark: Mark) -> None:
        """Forget what was read, and read on from there."""
        with self.lock:
            self.marks, self.failure = [mark], None
            self.blocks.clear()
            self.digests.clear()

    def close(self) -> None:
        """Stop reading; nothing more can be taken."""
        self.rows.stopped.set()
        self.pool.shutdown(cancel_futures=True)

    def pack(self, place: int) -> Sequence[TokenRow]:
        """The pack at a place of the stream."""
        assert place >= self.marks[0].position, "what was before the checkpoint is not asked for"
        number = self.marks[bisect_right(self.marks, place, key=lambda mark: mark.position) - 1].number
        while place >= (block := self.block(number, ahead=True)).end.position:
            number += 1
        return block.packs[place - block.begin.position]

    def index_before(self, position: int) -> int:
        """Of the last block of which something lies before ``position``, the place among the marks."""
        return max(bisect_left(self.marks, position, key=lambda mark: mark.position) - 1, 0)

    def block(self, number: int, *, ahead: bool = False) -> Block:
        """The block of this number; the next is begun to be made if ``ahead``, as it is while training."""
        wanted = (number, number + 1) if ahead else (number,)
        with self.lock:
            for one in reversed(wanted):
                if one in self.blocks:
                    self.blocks.move_to_end(one)
            for one in wanted:
                if one not in self.blocks:
                    self.blocks[one] = self.pool.submit(self.make, one)
            while len(self.blocks) > KEPT_BLOCKS:
                self.blocks.popitem(last=False)
            found = self.blocks[number]
        return found.result()

    def make(self, number: int) -> Block:
        """Read a block, shuffle and pack it; only ever in the one thread, where the block before it was made."""
        if self.failure is not None:
            raise self.failure
        begin = self.marks[number - self.marks[0].number]
        try:
            reading = self.rows.read(number, begin.cursors)
        except Exception as error:
            self.failure = error  # also of the blocks behind it
            raise
        own = seeded("block of the stream", self.seed, number).getrandbits(SEED_BITS)
        rows = reading.found.rows
        packs = pack_rows(rows, budget=self.budget, seed=own, shuffle=self.shuffle)
        order = list(packs.packs)
        if self.shuffle:
            seeded("order of the data", own).shuffle(order)
        end = Mark(number + 1, begin.position + len(order), reading.cursors)
        taken = [[rows[row] for row in pack] for pack in order]
        block = Block(begin, end, taken, reading, digest_of(rows, reading.digests))
        if number not in self.digests:
            self.digests[number] = block.digest
            self.marks.append(end)
            self.tell_of(block)
        return block

    def tell_of(self, block: Block) -> None:
        """Say what a block leaves out, unless all of it was read before; faults in full until there are too many."""
        found = block.reading.found
        if min(cursor.epoch for cursor in block.begin.cursors) or not (found.num_bad or found.num_skipped):
            return
        lines = [*block.reading.told.splitlines(), *found.faults][: NUM_SHOWN - self.num_shown]
        self.num_shown += len(lines)
        left_out = (
            f"data: block {block.begin.number + 1} of the stream has {len(found.rows)} rows, and leaves out"
            f" {found.num_bad} that cannot be used (data.on_bad_row) and {found.num_skipped} that are too long"
            " (data.long_rows)"
        )
        self.tell("\n".join([left_out, *lines]))


def digest_of(rows: Collection[TokenRow], media: Digests) -> str:
    """A hash of what rows say and show, and of what of it is learnt."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row.ids).to_bytes(8) + row.ids.numpy().tobytes() + row.supervised.numpy().tobytes())
        for medium in row.media:
            digest.update(media[medium].encode())
    return digest.hexdigest()
