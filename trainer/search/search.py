# SPDX-License-Identifier: Apache-2.0
"""A search from end to end: a method measures, its best are measured again on another split, and both decide.

What did best on the split that was searched did so partly by luck, the more the more was measured; so the best few of
each budget are measured once more, on text that had no part in finding them. They are judged by the mean of both
splits: luck made all of them look too good, and of which is the best of them the first split still tells as much as the
second. In a study in which all was known, that left less regret than the second split alone (docs/results/search.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from model.errors import ConfigError
from model.slicing.spec import SliceSpec
from trainer.search.evaluator import Evaluator
from trainer.search.methods import METHODS, SearchMethod, check_evaluations
from trainer.search.problem import Problem, coefficient_of_determination
from trainer.search.result import Found, Pick, SearchResult, pareto
from trainer.search.space import Point

Price = Callable[[SliceSpec], int]  # what a whole sub-model costs where that is measured


def search(
    problem: Problem, method: SearchMethod, calibration: Evaluator, *, top_k: int, price: Price | None = None
) -> SearchResult:
    """Search by ``method``, and choose for each budget among its ``top_k`` best by both splits.

    Args:
        problem: What to search; nothing was measured of it yet.
        method: How.
        calibration: Measures on the calibration split.
        top_k: How many of each budget are measured again.
        price: Measures what a whole sub-model costs, where the table of costs is only near that.

    Raises:
        ConfigError: ``top_k`` is below 1, fewer may be measured than the method needs, or nothing keeps a budget whose
            price is measured.
        InputError: A loss is not finite.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; at least 1 of the best has to be measured again")
    check_evaluations(method, problem.space, len(problem.budgets), problem.left)
    floor = problem.costs.floor
    problem.measure([floor])
    METHODS[method](problem)
    prices: dict[Point, int] = {}

    def measured(point: Point) -> int | None:
        if price is None:
            return None
        if point not in prices:
            prices[point] = price(problem.space.spec(point))
        return prices[point]

    finalists = {budget: best_within(problem, budget, top_k, measured) for budget in problem.budgets}
    points = list(dict.fromkeys([floor, *(point for best in finalists.values() for point in best)]))
    losses = calibration.losses([problem.space.spec(point) for point in points])
    found = {
        point: Found(
            spec=problem.space.spec(point), cost=problem.costs.at(point), loss=problem.seen[point],
            calibration_loss=loss, measured_cost=measured(point),
        )
        for point, loss in zip(points, losses, strict=True)
    }  # fmt: skip
    told, true = zip(*problem.foretold, strict=True) if problem.foretold else ((), ())
    return SearchResult(
        method=method, resource=problem.costs.resource, seed=problem.seed,
        picks=tuple(Pick(budget=budget, found=picked(found.values(), budget)) for budget in problem.budgets),
        frontier=pareto(found.values()), reference=(problem.costs.ceiling, found[floor].judged_loss),
        evaluations=problem.evaluator.spent, calibration_evaluations=calibration.spent,
        surrogate_r2=coefficient_of_determination(told, true),
    )  # fmt: skip


def best_within(problem: Problem, budget: int, top_k: int, measured: Callable[[Point], int | None]) -> Sequence[Point]:
    """The best few of a budget by the search split, of those whose measured price keeps it, too.

    Raises:
        ConfigError: There is none.
    """
    best: list[Point] = []
    cheapest = problem.costs.floor
    for point in problem.best(budget, len(problem.seen)):
        if (found := measured(point)) is None or found <= budget:
            best.append(point)
        if len(best) == top_k:
            break
    if not best:
        cost = measured(cheapest)
        assert cost is not None, "a budget that the table keeps is only broken by what was measured"
        told = problem.costs.resource.told
        raise ConfigError(
            f"search: a budget of {told(budget)} is kept by no sub-model that was measured whole: the cheapest,"
            f" {problem.space.spec(cheapest).name}, takes {told(cost)}; allow that much"
        )
    return best


def picked(found: Iterable[Found], budget: int) -> Found:
    """The best within a budget by both splits; of equals the cheapest."""
    return min((one for one in found if one.price <= budget), key=lambda one: (one.judged_loss, one.price))
