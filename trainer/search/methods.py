# SPDX-License-Identifier: Apache-2.0
"""The ways of searching. Each measures what it thinks worth it; what is best of that is not its business."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from model.errors import ConfigError
from trainer.search.evolutionary import DRAWN, evolutionary
from trainer.search.greedy import greedy
from trainer.search.heuristics import official, paper
from trainer.search.problem import Problem
from trainer.search.refine import surrogate
from trainer.search.sensitivity import one_at_a_time, sensitivity
from trainer.search.space import Space


class SearchMethod(StrEnum):
    """How points worth measuring are found."""

    surrogate = "surrogate"  # sensitivities from both ends, then rounds of a fitted model of losses
    sensitivity = "sensitivity"  # what each choice is worth alone, and the exact knapsack over it
    greedy = "greedy"  # the step that gains most for what it costs, again and again
    evolutionary = "evolutionary"  # regularised evolution
    paper = "paper"  # MatFormer's heuristic: widths that never narrow with depth, as even as can be
    official = "official"  # the order in which Google's published slices widen


def least_evaluations(method: SearchMethod, space: Space, num_budgets: int) -> int:
    """How many sub-models a method should be let measure on the search split to do what it is there for.

    The cheapest is always among them. With fewer a method would end with whatever it had measured until then.
    """
    match method:
        case SearchMethod.surrogate:
            needed = 3  # both ends, and one that the model of them promises
        case SearchMethod.sensitivity:  # every choice alone, then what is best for each budget
            needed = 1 + len(set(one_at_a_time(space, space.top))) + num_budgets
        case SearchMethod.greedy:  # every step when it is first seen and when it is taken, then each budget's end
            needed = 1 + 2 * sum(space.top) + num_budgets
        case SearchMethod.evolutionary:  # the cheapest, and then in its first half enough to draw a parent among
            needed = 1 + 2 * DRAWN
        case _:  # what the rule says for each budget
            needed = 1 + num_budgets
    return min(needed, space.size)


def check_evaluations(method: SearchMethod, space: Space, num_budgets: int, allowed: float) -> None:
    """Raise ConfigError if a method needs more evaluations than it is allowed."""
    if allowed < (needed := least_evaluations(method, space, num_budgets)):
        raise ConfigError(
            f"max_evaluations is {allowed:g}, but method={method} has to measure {needed:,} sub-models of this"
            f" space for {num_budgets} budgets; allow so many, or make the space smaller (space.block)"
            + ("" if method is SearchMethod.surrogate else f", or take method={SearchMethod.surrogate}")
        )


METHODS: dict[SearchMethod, Callable[[Problem], None]] = {
    SearchMethod.surrogate: surrogate,
    SearchMethod.sensitivity: sensitivity,
    SearchMethod.greedy: greedy,
    SearchMethod.evolutionary: evolutionary,
    SearchMethod.paper: paper,
    SearchMethod.official: official,
}
