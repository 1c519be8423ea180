# SPDX-License-Identifier: Apache-2.0
"""The default method: sensitivities from both ends, then rounds of fitting a surrogate and measuring what it promises.

A choice is worth more among narrow layers than among wide ones, so what it adds is measured at both ends. The
surrogate is fitted to everything measured so far. For each budget it says which point is the best of those not yet
measured; a round measures the most promising ones and fits anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from trainer.search.climb import Neighbours, climbed
from trainer.search.knapsack import solve
from trainer.search.problem import Problem
from trainer.search.sensitivity import Table, one_at_a_time
from trainer.search.space import Point, with_choice
from trainer.search.surrogate import Surrogate

ROUNDS = 4  # at least: as much is measured at a time as leaves so many rounds
MAX_LISTED = 50_000  # points of a space of which each is predicted; larger spaces are searched from good points on
SHARE_AT_THE_ENDS = 0.6  # of all evaluations, at most


def surrogate(problem: Problem) -> None:
    """Spend all evaluations: first on both ends, then on what a surrogate fitted to all of them promises.

    Where there are too few of them to measure every choice at both ends, some are left out by chance.
    """
    start(problem)
    if not problem.seen:
        return
    room = problem.left if np.isfinite(problem.left) else 2 * len(problem.seen)
    at_once, last = max(1, int(room) // ROUNDS), problem.evaluator.spent + room
    every = np.array(list(problem.space)) if problem.space.size <= MAX_LISTED else None
    neighbours = Neighbours(problem.costs)
    while problem.evaluator.spent < last:
        model = fitted(problem)
        candidates = reached(problem, model, neighbours) if every is None else every
        promised = promising(problem, model, candidates)[: min(at_once, int(last - problem.evaluator.spent))]
        if not promised:
            return
        told = model.predict(promised).tolist()
        found = set(problem.measure(promised))
        problem.foretold += [
            (loss, problem.seen[point]) for point, loss in zip(promised, told, strict=True) if point in found
        ]


def start(problem: Problem) -> None:
    """Measure both ends, and each choice alone from there, the top's first; of them as many as leaves some to refine.

    Of an end that is not measured whole, chance says what is left out.
    """
    space, floor = problem.space, problem.costs.floor
    ends = [space.top, floor]
    most = np.inf
    if np.isfinite(problem.left):
        most = max(0, int((problem.left + problem.evaluator.spent) * SHARE_AT_THE_ENDS) - len(ends))
    singles: list[Point] = []
    for around in (one_at_a_time(space, space.top), legal_neighbours(problem, floor)):
        new = [point for point in dict.fromkeys(around) if point not in (*ends, *singles)]
        if len(singles) + len(new) > most:
            problem.chance("start").shuffle(new)
        singles += new
    problem.measure([*ends, *singles[: int(min(most, len(singles)))]])


def legal_neighbours(problem: Problem, base: Point) -> Iterator[Point]:
    """Legal points that differ from one in one group."""
    for number, group in enumerate(problem.space.groups):
        for choice in range(len(group.choices)):
            moved = with_choice(base, number, choice)
            if choice != base[number] and problem.space.is_legal(moved):
                yield moved


def fitted(problem: Problem) -> Surrogate:
    """A surrogate of all that was measured."""
    return Surrogate.fit(believed(problem), list(problem.seen), list(problem.seen.values()))


def believed(problem: Problem) -> Table:
    """What each choice adds, as far as the two ends tell: the mean of both, or what one of them tells.

    Of a choice that neither tells, it is what lies in a straight line between its neighbours.
    """
    space, seen = problem.space, problem.seen
    table = []
    for number, group in enumerate(space.groups):
        found: list[list[float]] = [[] for _ in group.choices]
        for base in (space.top, problem.costs.floor):
            if base not in seen:
                continue
            told = {
                choice: seen[point] - seen[base] for choice in range(len(group.choices))
                if (point := with_choice(base, number, choice)) in seen
            }  # fmt: skip
            zero = told.get(len(group.choices) - 1)
            if zero is None or len(told) < 2:  # the base alone tells nothing
                continue
            for choice, loss in told.items():
                found[choice].append(loss - zero)
        known = [choice for choice, values in enumerate(found) if values]
        means = [float(np.mean(found[choice])) for choice in known]
        choices = range(len(group.choices))
        table.append(tuple(np.interp(choices, known, means).tolist()) if known else (0.0,) * len(choices))
    return tuple(table)


def promising(
    problem: Problem, model: Surrogate, candidates: Int64[np.ndarray, "candidates groups"]
) -> list[Point]:  # fmt: skip
    """The best unmeasured candidate of each budget, by the surrogate; first where most is to be gained."""
    found: dict[Point, float] = {}
    predicted, prices = model.predict(candidates), problem.costs.of_each(candidates)
    new = np.array([point not in problem.seen for point in map(tuple, candidates.tolist())])
    for budget in problem.budgets:
        within = np.flatnonzero((prices <= budget) & new)
        if not len(within):
            continue
        place = within[np.argmin(predicted[within])]
        best = problem.best(budget)
        # What was measured is judged by the surrogate, too: it has less noise than the measurement.
        before = float(model.predict(best)[0]) if best else np.inf
        gain = before - float(predicted[place])
        point = tuple(candidates[place].tolist())
        found[point] = max(found.get(point, -np.inf), gain)
    return sorted(found, key=lambda point: (-found[point], point))


def reached(
    problem: Problem, model: Surrogate, neighbours: Neighbours
) -> Int64[np.ndarray, "candidates groups"]:  # fmt: skip
    """Points that good ones lead to: those that add up best, and the best that were measured, of each budget."""
    begins = solve(linear(problem, model, problem.space.top), problem.costs, problem.budgets)
    visited: dict[Point, None] = {}
    for budget, begin in zip(problem.budgets, begins, strict=True):
        linearised = solve(linear(problem, model, begin), problem.costs, [budget]) if begin else []
        known: set[Point] = set()
        for point in dict.fromkeys([begin, *linearised, *problem.best(budget, 2)]):
            if point is not None:
                beside = len(problem.budgets)
                visited |= dict.fromkeys(climbed(neighbours, model, point, budget, beside=beside, known=known))
    return np.array(list(visited))


def linear(problem: Problem, model: Surrogate, point: Point) -> Table:
    """What each choice adds around a point, by the surrogate."""
    here = [
        [with_choice(point, number, choice) for choice in range(len(group.choices))]
        for number, group in enumerate(problem.space.groups)
    ]
    predicted = iter(model.predict(list(itertools.chain(*here))).tolist())
    return tuple(tuple(next(predicted) for _ in points) for points in here)
