# SPDX-License-Identifier: Apache-2.0
"""What each choice is worth, measured one at a time from one end of the space, and the exact best sum for a budget."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.search.cost import by_differences, closure
from trainer.search.knapsack import solve
from trainer.search.problem import Problem
from trainer.search.space import Point, Space, with_choice

Table = tuple[tuple[float, ...], ...]  # of each group, what each choice adds to the loss


def sensitivity(problem: Problem) -> None:
    """Measure every choice alone, the others at their widest, and what is best for each budget if losses add up.

    Where not every choice may be measured nothing is known of the sums, and no answer is given: ``methods`` says
    beforehand how many that are.
    """
    table = sensitivities(problem, problem.space.top)
    if table is None:
        return
    answers = solve(table, problem.costs, problem.budgets)
    problem.measure(point for point in reversed(answers) if point is not None)


def sensitivities(problem: Problem, base: Point) -> Table | None:
    """What each choice adds to the loss of a point; None if not all of it may be measured."""
    needed = list(one_at_a_time(problem.space, base))
    if len(problem.measure(needed)) < len(needed):
        return None
    _, table = by_differences(problem.space, problem.seen.__getitem__, base)
    return table


def one_at_a_time(space: Space, base: Point) -> Iterator[Point]:
    """A point, and those that differ from it in one group, or in those that are left out together."""
    yield base
    for number, group in enumerate(space.groups):
        for choice in range(len(group.choices)):
            if group.may_be_skipped and choice == 0:
                together = closure(space, number)
                yield tuple(0 if i in together else other for i, other in enumerate(base))
            elif choice != base[number]:
                yield with_choice(base, number, choice)
