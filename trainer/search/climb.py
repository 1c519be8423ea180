# SPDX-License-Identifier: Apache-2.0
"""Going down on a fitted model of losses, in spaces too large to list: one or two groups are changed at a time.

A point of 35 groups has some two thousand neighbours, and all are looked at in every step; so they are made, priced and
predicted as one array, never one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from trainer.search.cost import Costs
from trainer.search.space import Point, Space
from trainer.search.surrogate import Surrogate

MAX_CLIMB = 200  # steps
LEAST_GAIN = 1e-12  # nats


@dataclass(frozen=True)
class Neighbours:
    """What lies one step of one group away from a point, or one step of each of two.

    Args:
        costs: Of the points of the space.
    """

    costs: Costs

    @property
    def space(self) -> Space:
        """Where points are."""
        return self.costs.space

    @cached_property
    def steps(self) -> Int64[np.ndarray, "neighbours groups"]:
        """What is added to a point: steps of one group, each followed by those of it and a later one."""
        groups = range(len(self.space.groups))
        changes: list[dict[int, int]] = []
        for group in groups:
            for step in (-1, 1):
                changes.append({group: step})
                changes += [{group: step, other: and_then} for other in groups[group + 1 :] for and_then in (-1, 1)]
        found = np.zeros((len(changes), len(groups)), np.int64)
        for row, change in zip(found, changes, strict=True):
            row[list(change)] = list(change.values())
        return found

    def of(self, point: Point, budget: int) -> Int64[np.ndarray, "neighbours groups"]:
        """The legal ones that a budget has room for."""
        around = np.array(point) + self.steps
        around = around[((around >= 0) & (around <= np.array(self.space.top))).all(axis=1)]
        if self.space.bound:  # where no group is bound to others, every choice goes with every other
            around = around[self.space.are_legal(around)]
        return around[self.costs.of_each(around) <= budget]


def climbed(
    neighbours: Neighbours, model: Surrogate, begin: Point, budget: int, *, beside: int, known: set[Point]
) -> Iterator[Point]:
    """The best way down from a point, and what lies beside its end.

    Args:
        neighbours: Of points of the space.
        model: Says what is down.
        begin: Where to begin, within the budget.
        budget: That no point of the way is dearer than.
        beside: How many of the best neighbours of the end are told, too.
        known: Points from which the way was gone already; there it ends. Those of this way are added.
    """
    point, loss = begin, float(model.predict([begin])[0])
    for _ in range(MAX_CLIMB):
        if point in known:
            return
        known.add(point)
        yield point
        around = neighbours.of(point, budget)
        if not len(around):
            return
        predicted = model.predict(around)
        best = int(np.argmin(predicted))
        if predicted[best] >= loss - LEAST_GAIN:
            yield from map(tuple, around[np.argsort(predicted, kind="stable")[:beside]].tolist())
            return
        point, loss = tuple(around[best].tolist()), float(predicted[best])
