# SPDX-License-Identifier: Apache-2.0
"""One step after the other from the cheapest point on, always the one that gains most for what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.search.problem import Problem
from trainer.search.space import Point


@dataclass(frozen=True)
class Gain:
    """What a step of one group is worth: nats gained for what it costs, and where on the way that was measured."""

    ratio: float
    measured_at: int


def greedy(problem: Problem) -> None:
    """Widen one group by one step at a time, up to the dearest budget; the way serves all budgets below.

    A step's gain hardly grows on the way, so only the most promising is measured anew, until it stays so: the lazy
    evaluation of Minoux (1978). When nothing more may be measured, the way goes on by what was measured last, as far as
    its points are known.
    """
    costs, point = problem.costs, problem.costs.floor
    problem.measure([point])
    gains: dict[tuple[int, int], Gain] = {}  # by group and choice
    steps = 0
    while point in problem.seen:
        ahead = {
            (number, moved[number]): moved for number, moved in problem.space.moves(point)
            if moved[number] > point[number] and costs.at(moved) <= problem.budgets[-1]
        }  # fmt: skip
        if not ahead:
            return
        first_seen = [step for step in ahead if step not in gains]
        for step in first_seen:
            gains[step] = measured_gain(problem, point, ahead[step], steps)
        best = max(ahead, key=lambda step: gains[step].ratio)
        while gains[best].measured_at < steps and problem.left > 0:
            gains[best] = measured_gain(problem, point, ahead[best], steps)
            best = max(ahead, key=lambda step: gains[step].ratio)
        point = ahead[best]
        steps += 1
        problem.measure([point])


def measured_gain(problem: Problem, point: Point, moved: Point, steps: int) -> Gain:
    """What a step is worth here; nothing is said for one that may not be measured."""
    if not problem.measure([moved]):
        return Gain(float("-inf"), steps)
    more = problem.costs.at(moved) - problem.costs.at(point)
    return Gain((problem.seen[point] - problem.seen[moved]) / max(more, 1), steps)
