# SPDX-License-Identifier: Apache-2.0
"""Which rows lie in one pack: rows of tokens end to end, so that little of a batch is padding.

A pack holds whole rows alone, and at most a budget of tokens. It is made from lengths, once, and the same rows and
seed give the same packs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.errors import InputError
from trainer.data.lengths import lengths_of
from trainer.data.supervise import TokenRow
from trainer.seeding import seeded

Pack = tuple[int, ...]  # the numbers of its rows


@dataclass(frozen=True)
class Packs:
    """The packs of all rows, each row in one of them.

    Args:
        packs: In the order they are gone through where nothing is shuffled.
        num_tokens: Of all rows; not counted where every row is alone.
        budget: The most tokens that a pack may have; None where every row is alone.
    """

    packs: Sequence[Pack]
    num_tokens: int
    budget: int | None

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def share_filled(self) -> float:
        """How much of the packs' budgets is tokens, 1 if none is left over; rows alone have no budget to fill."""
        return 1.0 if self.budget is None else self.num_tokens / (len(self.packs) * self.budget)


def alone(count: int) -> Packs:
    """Every one of ``count`` rows in a pack of its own."""
    return Packs([(row,) for row in range(count)], num_tokens=0, budget=None)


def pack_rows(rows: Sequence[TokenRow], *, budget: int | None, seed: int, shuffle: bool) -> Packs:
    """The packs of ``rows``; the last token of a row is only ever a label, and takes no place."""
    if budget is None:
        return alone(len(rows))
    return pack((lengths_of(rows) - 1).tolist(), budget=budget, seed=seed, shuffle=shuffle)


def pack(lengths: Sequence[int], *, budget: int, seed: int, shuffle: bool = True) -> Packs:
    """Packs of rows of these lengths.

    Shuffled rows are put, the longest first, each where the least is left over; which of several equally long ones
    go together is drawn. Rows that are to stay in order fill one pack after the other.

    Args:
        lengths: Tokens of each row, labels left out.
        budget: The most of them that a pack may have.
        seed: Of the run.
        shuffle: Whether rows need not stay in order.

    Raises:
        InputError: A row alone is longer than the budget.
    """
    longest = max(lengths, default=0)
    if longest > budget:
        raise InputError(
            f"data: row {lengths.index(longest)} has {longest} tokens to put into packs of {budget}; raise"
            " data.pack_tokens, or lower data.max_length_tokens"
        )
    packs = best_fitting(lengths, budget, seed) if shuffle else one_after_the_other(lengths, budget)
    return Packs(packs, sum(lengths), budget)


def best_fitting(lengths: Sequence[int], budget: int, seed: int) -> list[Pack]:
    """Each row, the longest first, in the fullest pack that has room for it."""
    order = list(range(len(lengths)))
    seeded("packs of the data", seed).shuffle(order)
    order.sort(key=lambda row: -lengths[row])  # rows of equal length stay as they were drawn
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # packs, by the tokens that they have room for
    rooms: list[int] = []  # those numbers of tokens, ascending
    for row in order:
        place = bisect_left(rooms, lengths[row])
        if place == len(rooms):
            room, pack = budget, len(packs)
            packs.append([])
        else:
            room = rooms[place]
            pack = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        packs[pack].append(row)
        left = room - lengths[row]
        if left > 0:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(pack)
    return in_order_of_rows(packs)


def one_after_the_other(lengths: Sequence[int], budget: int) -> list[Pack]:
    """Rows in order, a new pack wherever one would be too much."""
    packs: list[list[int]] = []
    room = 0
    for row, length in enumerate(lengths):
        if length > room or not packs:
            packs.append([])
            room = budget
        packs[-1].append(row)
        room -= length
    return in_order_of_rows(packs)


def in_order_of_rows(packs: Iterable[Sequence[int]]) -> list[Pack]:
    """Packs by their first row, each with its rows in order: long rows shall not come first."""
    return sorted(tuple(sorted(pack)) for pack in packs)
