# SPDX-License-Identifier: Apache-2.0
"""The multiple-choice knapsack, solved exactly: one choice for every group, the least sum of values within a budget.

Groups are added one by one. Of all choices so far only those are kept that no other beats in cost and value both;
there are never more of them than different costs, however many points the space has. The last list holds the answer
to every budget at once. Source: Nemhauser & Ullmann, Management Science 15 (1969).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from trainer.search.cost import Costs
from trainer.search.space import Box, Point

Table = Sequence[Sequence[float]]  # by group and choice


@dataclass(frozen=True)
class Stage:
    """The lists of choices up to a group that none beats, by ascending cost and descending value.

    ``choice`` is that of the stage's own group, and ``before`` the place in the stage before of all earlier ones.
    """

    cost: Int64[np.ndarray, " kept"]
    value: Float64[np.ndarray, " kept"]
    choice: Int64[np.ndarray, " kept"]
    before: Int64[np.ndarray, " kept"]


def solve(values: Table, costs: Costs, budgets: Sequence[int]) -> list[Point | None]:
    """For each budget the legal point of the least sum of values, the cheapest of several; None where there is none."""
    solved = [solve_box(values, costs, box, budgets) for box in costs.space.boxes]
    return [
        min(
            (answer for answers in solved if (answer := answers[place]) is not None),
            key=lambda point: (total(values, point), costs.at(point)), default=None,
        )
        for place in range(len(budgets))
    ]  # fmt: skip


def total(values: Table, point: Point) -> float:
    """The sum of a point's values."""
    return sum(of_group[choice] for of_group, choice in zip(values, point, strict=True))


def solve_box(values: Table, costs: Costs, box: Box, budgets: Sequence[int]) -> list[Point | None]:
    """As ``solve``, among the points of one box."""
    # Whatever comes later costs this much at least, so what leaves less room is of no use.
    least = [min(of_group[choice] for choice in allowed) for of_group, allowed in zip(costs.table, box, strict=True)]
    room = max(budgets) - costs.constant - sum(least)
    stages = [Stage(*(np.zeros(1, dtype) for dtype in (np.int64, np.float64, np.int64, np.int64)))]
    for value, cost, low, allowed in zip(values, costs.table, least, box, strict=True):
        stages.append(added(stages[-1], [(choice, cost[choice] - low, value[choice]) for choice in allowed], room))
    last = stages[-1]
    answers: list[Point | None] = []
    for budget in budgets:
        place = int(np.searchsorted(last.cost, budget - costs.constant - sum(least), side="right")) - 1
        answers.append(None if place < 0 else traced(stages, place))
    return answers


def added(stage: Stage, choices: Sequence[tuple[int, int, float]], room: int) -> Stage:
    """One group more, whose choices are given by number, cost and value; costs may come to ``room`` at most."""
    number = len(stage.cost)
    cost = np.concatenate([stage.cost + more for _, more, _ in choices])
    value = np.concatenate([stage.value + more for _, _, more in choices])
    choice = np.repeat(np.array([one for one, _, _ in choices], np.int64), number)
    before = np.tile(np.arange(number), len(choices))
    order = np.lexsort((value, cost))
    order = order[cost[order] <= room]
    ranked = value[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], ranked[:-1]])) if len(ranked) else ranked
    order = order[ranked < best_before]
    return Stage(cost[order], value[order], choice[order], before[order])


def traced(stages: Sequence[Stage], place: int) -> Point:
    """The choices that led to a place in the last stage."""
    choices: list[int] = []
    for stage in reversed(stages[1:]):
        choices.append(int(stage.choice[place]))
        place = int(stage.before[place])
    return tuple(reversed(choices))
