# SPDX-License-Identifier: Apache-2.0
"""Which rows an epoch has: some held out, the others as often as their source weighs; pure functions of the data.

An epoch is one fixed list of rows. A source of weight 2 stands in it twice; of one of weight 0.5 half of the rows do,
which half being drawn from the seed and the source's name alone, so that other sources change nothing about it.

What is held out is chosen by a hash of what a row says and shows. Below a share, a row's side depends on that row
alone: others that are added move none, and what stands in the data twice is on one side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from model.errors import InputError
from trainer.data.supervise import TokenRow
from trainer.seeding import seeded

HASH_BYTES = 8  # of a row's digest that decide; two rows in a billion of billions meet


@dataclass(frozen=True, eq=False)
class Picked(Sequence[TokenRow]):
    """Rows of a list in another order, or some of them, or some of them twice.

    Args:
        rows: The list.
        order: Places in it.
    """

    rows: Sequence[TokenRow]
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> Picked: ...
    def __getitem__(self, index: int | slice) -> TokenRow | Picked:
        if isinstance(index, slice):
            return Picked(self.rows, self.order[index])
        return self.rows[self.order[index]]


def times(num_rows: int, weight: float, *, seed: int, name: str) -> list[int]:
    """The rows of a source in an epoch: all of them as often as the weight has wholes, and of its rest that share.

    The share is drawn without putting back, and rounded to whole rows, to one at least if there is nothing else.
    """
    whole = math.floor(weight)
    rest = round((weight - whole) * num_rows)
    if not whole and not rest:
        rest = min(1, num_rows)
    drawn = sorted(seeded(f"share of {name}", seed).sample(range(num_rows), rest))
    return [*list(range(num_rows)) * whole, *drawn]


def held_out(digests: Sequence[bytes], wanted: float) -> list[bool]:
    """Which rows are held out: a share of them below 1, or a number.

    A share is met on average; equal rows go together, so a number may be passed by those equal to the last. Rows that
    are added move no other under a share; under a number one more of the old may go to training for each.

    Args:
        digests: Hashes of what rows say.
        wanted: The share, or the number.

    Raises:
        InputError: None would be held out, or all.
    """
    places = [int.from_bytes(digest[:HASH_BYTES]) for digest in digests]
    if wanted < 1:
        edge = int(wanted * 2 ** (8 * HASH_BYTES))
    elif wanted < len(places):
        edge = sorted(places)[round(wanted) - 1] + 1
    else:
        raise InputError(
            f"data.held_out is {wanted:g}, but there are {len(places)} rows; leave some to be learnt, with a smaller"
            " number, or a share"
        )
    chosen = [place < edge for place in places]
    if all(chosen) or not any(chosen):
        which = "all" if all(chosen) else "none"
        raise InputError(
            f"data.held_out is {wanted:g}, and {which} of {len(places)} rows would be held out; give another share, or"
            " a number of rows"
        )
    return chosen
