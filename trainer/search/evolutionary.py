# SPDX-License-Identifier: Apache-2.0
"""Regularised evolution: the best of a few drawn has a changed child, and whoever is oldest goes.

Source: Real et al., arXiv 1802.01548. One population serves all budgets, which take turns: parents of a turn are
those within its budget, and a child is brought under it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from trainer.search.problem import Problem
from trainer.search.space import Point

POPULATION, DRAWN = 24, 6
MAX_TRIES = 20  # for a child that is not known yet


def evolutionary(problem: Problem) -> None:
    """Spend all evaluations, or four populations' worth where there is no limit; less if nothing new is born."""
    chance = problem.chance("evolution")
    room = problem.left if problem.left != float("inf") else 4 * POPULATION
    last = problem.evaluator.spent + room
    budgets = problem.budgets
    number = min(POPULATION, max(1, int(room) // 2))
    drawn = (
        filled(problem, problem.space.draw(chance), budgets[place * len(budgets) // number], chance)
        for place in range(number)
    )
    alive = problem.measure(drawn)
    turn = failed = 0
    while alive and problem.evaluator.spent < last and failed < 2 * len(budgets):
        budget = budgets[turn % len(budgets)]
        turn += 1
        child = born(problem, alive, budget, chance)
        if child is None or not problem.measure([child]):
            failed += 1
            continue
        failed = 0
        alive.append(child)
        if len(alive) > POPULATION:
            del alive[0]


def born(problem: Problem, alive: list[Point], budget: int, chance: random.Random) -> Point | None:
    """A child that was not measured yet, within a budget; None if none was found."""
    parents = [point for point in alive if problem.costs.at(point) <= budget] or alive
    parent = min(chance.sample(parents, min(DRAWN, len(parents))), key=problem.seen.__getitem__)
    for _ in range(MAX_TRIES):
        _, child = chance.choice(list(problem.space.moves(parent)))
        child = filled(problem, child, budget, chance)
        if child not in problem.seen:
            return child
    return None


def filled(problem: Problem, point: Point, budget: int, chance: random.Random) -> Point:
    """A point brought under a budget by steps down, then close to it by steps up, all drawn by chance."""
    costs, cost = problem.costs, problem.costs.at(point)

    def steps() -> Iterator[tuple[Point, int, bool]]:
        """Points one step away, their costs, and whether they are the wider ones."""
        for number, moved in problem.space.moves(point):
            yield moved, costs.after(cost, point, number, moved[number]), moved[number] > point[number]

    while cost > budget:
        cheaper = [(moved, price) for moved, price, _ in steps() if price < cost]
        if not cheaper:
            return costs.floor
        point, cost = chance.choice(cheaper)
    while True:
        wider = [(moved, price) for moved, price, is_wider in steps() if is_wider and price <= budget]
        if not wider:
            return point
        point, cost = chance.choice(wider)
