# SPDX-License-Identifier: Apache-2.0
"""Two rules that need no measuring: MatFormer's, and the order in which Google's published slices widen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from model.slicing.trained import widening_order
from trainer.search.cost import Costs
from trainer.search.problem import Problem
from trainer.search.space import Point, Space, with_choice


def paper(problem: Problem) -> None:
    """Widths that never narrow with depth, as even as the budget lets them be: the heuristic of Mix'n'Match.

    Only neighbouring widths are mixed, the narrower first: that is the least slope there is.

    Source: MatFormer, arXiv 2310.07707, section 3.
    """
    by_rule(problem, even)


def official(problem: Problem) -> None:
    """Groups are widened one after the other, in the order of the layers in Google's table of slices.

    Each goes from its narrowest to its widest before those behind it are touched; the first ones that the budget has
    no room for any more get what fits. With the trained widths of Gemma 3n these are the sub-models that
    ``matslice plan`` proposes for their sizes.

    Source: Google's table of slicing configurations of Gemma 3n; ``model/slicing/trained.py``.
    """
    by_rule(problem, in_official_order)


Rule = Callable[[Costs, Point], Callable[[int], Point]]  # of a narrowest point; says what is right for a budget


def by_rule(problem: Problem, rule: Rule) -> None:
    """Measure what a rule says for each budget, from the deepest point on that fits at its narrowest."""
    costs = problem.costs
    depths = [(costs.at(point), point) for point in depths_of(costs.space)]
    deepest = [next((point for price, point in depths if price <= budget), costs.floor) for budget in problem.budgets]
    rules = {point: rule(costs, point) for point in deepest}
    problem.measure(rules[point](budget) for point, budget in zip(deepest, problem.budgets, strict=True))


def depths_of(space: Space) -> list[Point]:
    """The narrowest point of each depth: nothing left out, then the last groups that may be, one more at a time."""
    point: Point = tuple(1 if group.may_be_skipped else 0 for group in space.groups)
    found = [point]
    for number in reversed(range(len(space.groups))):
        if space.groups[number].may_be_skipped:
            point = with_choice(point, number, 0)
            if space.is_legal(point):
                found.append(point)
    return found


def even(costs: Costs, narrowest: Point) -> Callable[[int], Point]:
    """The largest point within a budget of a depth, among those of two neighbouring widths that never narrow."""
    points = [(costs.at(point), point) for point in rising(costs.space, narrowest)]

    def within(budget: int) -> Point:
        fitting = [one for one in points if one[0] <= budget]
        # Of points that cost the same the widest: widths may cost nothing, as where keys and values are counted.
        return max(fitting, key=lambda one: (one[0], sum(one[1])), default=(0, narrowest))[1]

    return within


def rising(space: Space, narrowest: Point) -> Iterator[Point]:
    """Points of a depth whose last groups are one width wider than the others."""
    top = space.top
    most = max(high - low for low, high in zip(narrowest, top, strict=True))
    for step in range(most + 1):
        for first_wider in range(len(top)):
            yield tuple(
                low if is_left_out(space, number, low) else min(low + step + (number >= first_wider), high)
                for number, (low, high) in enumerate(zip(narrowest, top, strict=True))
            )


def in_official_order(costs: Costs, narrowest: Point) -> Callable[[int], Point]:
    """A point of a depth, its groups widened in the official order as far as a budget goes."""
    return lambda budget: widened(costs, narrowest, budget)


def widened(costs: Costs, narrowest: Point, budget: int) -> Point:
    """``in_official_order`` for one budget."""
    space, point = costs.space, narrowest
    for numbers in official_order(space):
        stopped = False
        for number in numbers:
            if is_left_out(space, number, narrowest[number]):
                continue
            wider = [with_choice(point, number, choice) for choice in range(space.top[number], point[number], -1)]
            point = next((one for one in wider if costs.at(one) <= budget), point)
            stopped |= point[number] < space.top[number]
        if stopped:
            break
    return point


def official_order(space: Space) -> list[list[int]]:
    """Numbers of groups of layers, together where the table does not say which is first."""
    place = {layer: rank for rank, layers in enumerate(widening_order(space.config)) for layer in layers}
    by_rank: dict[int, list[int]] = {}
    for number, group in enumerate(space.groups):
        # Layers that the table never narrows come first.
        by_rank.setdefault(min(place.get(layer, -1) for layer in group.layers), []).append(number)
    return [by_rank[rank] for rank in sorted(by_rank)]


def is_left_out(space: Space, number: int, choice: int) -> bool:
    """Whether this choice of a group is to leave it out."""
    return space.groups[number].may_be_skipped and choice == 0
