# SPDX-License-Identifier: Apache-2.0
"""What a stream is read from: sources that are gone through again and again, and the rows of one block of them.

Which source gives the next row is drawn by weight, from the seed and the block's number. Rows that are held out are the
first that come, and whatever says the same is left out of training wherever it stands.
"""

from __future__ import annotations

import dataclasses
import io
import random
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from itertools import cycle

from rich.console import Console

from model.errors import InputError
from model.processor.chat import Role
from model.processor.processor import Processor
from trainer.data.config import DataConfig, OnBadRow, OnPreference
from trainer.data.example import Example
from trainer.data.faults import NUM_SHOWN, Fault
from trainer.data.inspection import Digests, inspect, without_damage
from trainer.data.reading import Piece
from trainer.data.sources import Source, sources_of
from trainer.data.supervise import Limits, Maker, TokenRow, TokenRows, token_rows
from trainer.seeding import seeded

MEND_THE_STREAM = (
    "leave them out with data.on_bad_row=skip, which a run that goes on may be told, too (matslice train"
    " resume=RUN_DIR data.on_bad_row=skip); or mend them and begin anew"
)


@dataclass(frozen=True)
class Cursor:
    """How far a source has been read.

    Args:
        epoch: How often it was gone through.
        piece: The file that is being read, by its number.
        row: How many of its rows were taken, bad ones included.
    """

    epoch: int = 0
    piece: int = 0
    row: int = 0


@dataclass(frozen=True)
class Feed:
    """What rows are drawn from: all of ``data.train``, one file after the other, or one of ``data.sources``."""

    name: str
    weight: float
    pieces: Sequence[tuple[Source, Piece]]
    roles: Collection[Role]
    preference: OnPreference

    def from_on(self, at: Cursor) -> Iterator[tuple[Example | Fault, Cursor]]:
        """What is left of it, each row with the place behind it."""
        for number in range(at.piece, len(self.pieces)):
            source, piece = self.pieces[number]
            start = at.row if number == at.piece else 0
            coming = source.examples_of(piece, self.roles, self.preference, start=start)
            for row, example in enumerate(coming, start + 1):
                yield example, Cursor(at.epoch, number, row)


class Walk:
    """Goes through a feed from a place on, without an end."""

    def __init__(self, feed: Feed, at: Cursor) -> None:
        self.feed = feed
        self.at = at
        self.coming = feed.from_on(at)
        self.next = next(self.coming, None)
        if self.next is None:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Go through the feed once more."""
        self.at = Cursor(self.at.epoch + 1)
        self.coming = self.feed.from_on(self.at)
        self.next = next(self.coming, None)
        if self.next is None:
            pieces = ", ".join(f"'{piece.name}'" for _, piece in self.feed.pieces)
            raise InputError(f"data: no rows in {pieces}")

    def take(self) -> Example | Fault:
        """The next row; the place is that of the one behind it, in the next epoch if there is none in this."""
        assert self.next is not None, "there is always another epoch"
        example, self.at = self.next
        self.next = next(self.coming, None)
        if self.next is None:
            self.begin_anew()
        return example


@dataclass(frozen=True)
class Reading:
    """The rows of a block in order, what became of others, and where the next block begins.

    Args:
        found: The rows.
        cursors: How far each feed has been read now.
        digests: Of all media of the rows.
        told: What is to be said of media that are damaged.
    """

    found: TokenRows
    cursors: tuple[Cursor, ...]
    digests: Digests
    told: str


@dataclass
class StreamRows:
    """The rows of a stream, block by block.

    Args:
        data: What the user says.
        processor: That of the model.
        seed: Of the run.
        check: Raises InputError if some of a block's rows do not fit the model.
    """

    data: DataConfig
    processor: Processor
    seed: int
    check: Callable[[Sequence[TokenRow]], object] = lambda _: None
    feeds: list[Feed] = field(init=False)
    held_out: frozenset[bytes] = field(default=frozenset(), init=False)  # hashes of examples that are not learnt
    held_out_rows: TokenRows | None = field(default=None, init=False)
    stopped: threading.Event = field(default_factory=threading.Event, init=False)  # set by who waits for no more rows
    walks: list[Walk] = field(default_factory=list, init=False)  # at the end of the block that was read last

    def __post_init__(self) -> None:
        self.feeds = feeds_of(self.data)

    @property
    def start(self) -> tuple[Cursor, ...]:
        """The beginning of every feed."""
        return (Cursor(),) * len(self.feeds)

    def hold_out(self, count: int) -> None:
        """Take the first ``count`` rows for ``held_out_rows``; no block that is read after this has them.

        Raises:
            InputError: There are not that many; or as ``read``.
        """
        maker, rows, digests = self.maker(), list[TokenRow](), set[bytes]()
        # In turn, whatever their weights and the seed: so that a fork with others is measured on the same rows.
        walks = self.walks_from(self.start)
        for walk in cycle(walks):
            if len(rows) >= count or self.is_hopeless(maker):
                break
            example = walk.take()
            found = maker.rows(example)
            rows += found
            digests |= {example.digest()} if isinstance(example, Example) and found else set()
            if walk.at.epoch > 0:
                maker.finish()
                raise InputError(
                    f"data.held_out is {count}, but '{walk.feed.name}' has not more rows than are held out of it, and"
                    " nothing would be left to be learnt; give a smaller number"
                )
        maker.finish()
        self.check(rows)
        self.held_out = frozenset(digests)
        # What cannot be used is told with the block that it is in.
        self.held_out_rows = TokenRows(rows[: self.data.max_validation_examples], (), maker.num_skipped)

    def read(self, number: int, cursors: tuple[Cursor, ...]) -> Reading:
        """The block of this number, which begins at ``cursors``: so many rows, or what is left of a single feed.

        Raises:
            InputError: Rows cannot be used, and are to be refused; or a feed has none that can.
        """
        here = tuple(walk.at for walk in self.walks)
        walks = self.walks if here == cursors else self.walks_from(cursors)
        self.walks = []  # lost if anything is raised
        draw, maker, num_lost, told = seeded("sources of a block", self.seed, number), self.maker(), 0, list[str]()
        while True:
            rows = self.filled(draw, walks, maker)
            maker.finish()
            self.check(rows)
            digests, said = self.looked_at(rows)
            told += said
            if any(is_whole(row, digests) for row in rows) or self.are_gone_through(walks, cursors):
                break
            num_lost += len(rows)
        found = without_damage(token_rows(rows, maker), digests)
        self.walks = walks
        return Reading(
            dataclasses.replace(found, num_bad=found.num_bad + num_lost), tuple(walk.at for walk in walks), digests,
            "\n".join(told),
        )  # fmt: skip

    def filled(self, draw: random.Random, walks: Sequence[Walk], maker: Maker) -> list[TokenRow]:
        """As many rows as a block has, or what is left of a single feed that has any."""
        rows = list[TokenRow]()
        num_given, began = dict.fromkeys(map(id, walks), 0), {id(walk): walk.at.epoch for walk in walks}
        first = walks[0].at.epoch  # that of the first row
        while len(rows) < self.data.stream_block_rows and not self.is_hopeless(maker):
            if self.stopped.is_set():
                raise CancelledError
            walk = self.drawn(draw, walks)
            epoch, example = walk.at.epoch, walk.take()
            if not (self.held_out and isinstance(example, Example) and example.digest() in self.held_out):
                first = first if rows else epoch
                found = maker.rows(example)
                rows += found
                num_given[id(walk)] += len(found)
            if walk.at.epoch - began[id(walk)] > 1 and not num_given[id(walk)]:
                maker.finish()
                raise InputError(none_left(walk.feed.name, maker))
            if len(walks) == 1 and rows and walk.at.epoch > first:
                break
        return rows

    def are_gone_through(self, walks: Sequence[Walk], cursors: Sequence[Cursor]) -> bool:
        """Whether every feed was gone through from one end to the other since the block began."""
        return all(walk.at.epoch - cursor.epoch > 1 for walk, cursor in zip(walks, cursors, strict=True))

    def maker(self) -> Maker:
        """What makes rows of examples."""
        return Maker(self.processor, Limits(
            max_length_tokens=self.data.max_length_tokens, long_rows=self.data.long_rows,
            supervise=self.data.supervise, on_bad_row=self.data.on_bad_row, mend=MEND_THE_STREAM,
        ))  # fmt: skip

    def is_hopeless(self, maker: Maker) -> bool:
        """Whether as many rows are to be refused as are told."""
        bad = len(maker.faults) if self.data.on_bad_row is OnBadRow.refuse else 0
        return bad + len(maker.too_long) >= NUM_SHOWN

    def walks_from(self, cursors: Sequence[Cursor]) -> list[Walk]:
        """All feeds from these places on."""
        return [Walk(feed, at) for feed, at in zip(self.feeds, cursors, strict=True)]

    def drawn(self, draw: random.Random, walks: Sequence[Walk]) -> Walk:
        """The one that gives the next row."""
        return walks[0] if len(walks) == 1 else draw.choices(walks, [walk.feed.weight for walk in walks])[0]

    def looked_at(self, rows: Sequence[TokenRow]) -> tuple[Digests, list[str]]:
        """The digests of media that can be read, and what is to be said of others."""
        said = io.StringIO()  # a terminal may be showing how training goes on
        console = Console(file=said, width=10_000, force_terminal=False, force_jupyter=False)
        digests = inspect(rows, self.data.check_media, console=console, on_bad_row=self.data.on_bad_row)
        return digests, said.getvalue().splitlines()

    def described(self, cursors: Sequence[Cursor]) -> str:
        """The rows that come next, in words."""
        places = [
            f"row {at.row + 1:,} of '{feed.pieces[at.piece][1].name}'" if at.piece < len(feed.pieces) else feed.name
            for feed, at in zip(self.feeds, cursors, strict=False)
        ]
        return " and ".join(places)


def is_whole(row: TokenRow, digests: Digests) -> bool:
    """Whether all media of a row could be read."""
    return all(medium in digests for medium in row.media)


def feeds_of(data: DataConfig) -> list[Feed]:
    """What rows are drawn from, in order.

    Raises:
        MatsliceError: A source is missing, or cannot be what is said of it.
    """
    sources = sources_of(data)
    listed, mixed = sources[: len(data.train)], sources[len(data.train) :]
    groups = [("data.train", 1.0, listed)] if listed else []
    groups += [(source.name, source.weight, [source]) for source in mixed]
    return [
        Feed(
            name, weight, [(source, piece) for source in own for piece in source.pieces()], data.supervise.roles,
            data.preference,
        )
        for name, weight, own in groups
    ]  # fmt: skip


def none_left(name: str, maker: Maker) -> str:
    """That a feed was gone through, and gave nothing."""
    return (
        f"data: '{name}': none of its rows is left to be learnt; of those just read, {len(maker.faults)} cannot be used"
        f" (data.on_bad_row) and {maker.num_skipped} are too long (data.long_rows), and others are held out"
    )
