# SPDX-License-Identifier: Apache-2.0
"""What a search method is given: where to search, what it costs, how much may be spent, and how to measure."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.errors import ConfigError
from trainer.search.cost import Costs
from trainer.search.evaluator import Evaluator
from trainer.search.space import Point, Space
from trainer.seeding import seeded


@dataclass(kw_only=True)
class Problem:
    """A search for the best points under several budgets at once, which share all that is measured.

    Args:
        costs: Of the points of the space.
        budgets: Limits of costs, ascending.
        evaluator: Measures on the search split.
        seed: Of all that is drawn by chance.

    Raises:
        ConfigError: There is no budget, or one below the floor of the space.
    """

    costs: Costs
    budgets: Sequence[int]
    evaluator: Evaluator
    seed: int = 0
    seen: dict[Point, float] = field(default_factory=dict, init=False)  # losses of all that was asked for, in order
    prices: dict[Point, int] = field(default_factory=dict, init=False)  # what they cost
    # what a surrogate said of points before they were measured, and what was measured then
    foretold: list[tuple[float, float]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.budgets:
            raise ConfigError("search: no budget is given; give at least one")
        self.budgets = sorted(set(self.budgets))
        self.costs.check(self.budgets[0])

    @property
    def space(self) -> Space:
        """Where points are."""
        return self.costs.space

    @property
    def left(self) -> float:
        """How many more points may be measured."""
        return self.evaluator.left

    def chance(self, purpose: str) -> random.Random:
        """A generator of its own for a purpose."""
        return seeded(f"search {purpose}", self.seed)

    def measure(self, points: Iterable[Point]) -> list[Point]:
        """Measure points, as many of them from the first on as may be; those that are known now are given back."""
        by_name = {self.space.spec(point): point for point in dict.fromkeys(points)}
        specs = self.evaluator.affordable(by_name)
        found = [by_name[spec] for spec in specs]
        self.seen.update(zip(found, self.evaluator.losses(specs), strict=True))
        self.prices.update((point, self.costs.at(point)) for point in found)
        return found

    def best(self, budget: int, count: int = 1) -> list[Point]:
        """The points within a budget of the lowest measured losses, the lowest first; of equals the cheaper ones."""
        within = (point for point, price in self.prices.items() if price <= budget)
        return heapq.nsmallest(count, within, key=lambda point: (self.seen[point], self.prices[point], point))


def coefficient_of_determination(told: Sequence[float], measured: Sequence[float]) -> float | None:
    """R²: 1 where all was told exactly, 0 where the mean would have done as well; None where that is undefined."""
    if len(measured) < 2 or not (spread := float(np.var(measured))):
        return None
    return 1.0 - float(np.mean(np.square(np.subtract(told, measured)))) / spread
