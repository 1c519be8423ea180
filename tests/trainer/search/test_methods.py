# SPDX-License-Identifier: Apache-2.0
"""Every method proposes legal sub-models, keeps to its allowance, does the same again, and finds what it can find."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from model.errors import ConfigError
from model.slicing.plan import Plan
from model.slicing.propose import Budget, propose
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import tiny_config
from tests.trainer.search.spaces import BLOCK, BOUND, Measured, priced, problem_of, space_of, synthetic
from trainer.search.cost import CostConfig, Costs, Resource, exact_costs
from trainer.search.evaluator import Evaluator
from trainer.search.heuristics import official_order
from trainer.search.methods import METHODS, SearchMethod, least_evaluations
from trainer.search.problem import Problem, coefficient_of_determination
from trainer.search.search import search
from trainer.search.space import Point, Space, SpaceConfig

SPACE = space_of(BLOCK)
COSTS = priced(SPACE)
LOSSES = synthetic(SPACE, seed=3)
LARGE = space_of(SpaceConfig(widths=[4, 8, 16, 24, 32, 48], skip=[[3, 4, 5]]))


def regrets(problem: Problem, losses: dict[Point, float]) -> np.ndarray:
    """By how much what was measured falls short of the best there is, for each budget."""
    points, costs = list(losses), problem.costs
    prices, values = np.array([costs.at(point) for point in points]), np.array([losses[point] for point in points])
    best = [values[prices <= budget].min() for budget in problem.budgets]
    return np.array([problem.seen[problem.best(budget)[0]] for budget in problem.budgets]) - best


def run(method: SearchMethod, costs: Costs, losses: dict[Point, float], **kwargs: int) -> Problem:
    problem = problem_of(costs, losses, limit=kwargs.pop("limit", 60), **kwargs)
    problem.measure([costs.floor])
    METHODS[method](problem)
    return problem


def test_every_method_has_a_function() -> None:
    assert set(METHODS) == set(SearchMethod)


@pytest.mark.parametrize("method", SearchMethod)
@pytest.mark.parametrize("limit", [1, 2, 9, 60])
def test_all_that_is_measured_is_legal_and_within_the_allowance(method: SearchMethod, limit: int) -> None:
    for written in (BOUND, BLOCK, SpaceConfig()):
        space = space_of(written)
        losses = synthetic(space)
        problem = run(method, priced(space), losses, limit=limit)
        assert all(space.is_legal(point) for point in problem.seen)
        measured = problem.evaluator.measure
        assert isinstance(measured, Measured)
        assert len(measured.asked) == len(set(measured.asked)) == problem.evaluator.spent <= limit
        assert {space.spec(point).shape for point in problem.seen} == set(measured.asked)


@pytest.mark.parametrize("method", SearchMethod)
def test_the_same_seed_measures_the_same_in_the_same_order(method: SearchMethod) -> None:
    first, second = (run(method, COSTS, LOSSES, seed=5) for _ in range(2))
    assert list(first.seen.items()) == list(second.seen.items())
    assert first.foretold == second.foretold


def test_another_seed_evolves_otherwise() -> None:
    first, second = (run(SearchMethod.evolutionary, COSTS, LOSSES, seed=seed) for seed in (0, 1))
    assert set(first.seen) != set(second.seen)


@pytest.mark.parametrize(
    "method", [SearchMethod.surrogate, SearchMethod.sensitivity, SearchMethod.greedy], ids=str
)  # fmt: skip
def test_losses_that_add_up_are_searched_exactly(method: SearchMethod) -> None:
    losses = synthetic(SPACE, seed=1, together=0.0)
    problem = run(method, COSTS, losses, limit=120)
    found = regrets(problem, losses)
    assert found.min() >= 0
    # The greedy way leaves room at most budgets; the others have the optimum itself.
    assert found.max() <= (0.005 if method is SearchMethod.greedy else 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_default_method_comes_close_with_few_evaluations(seed: int) -> None:
    losses = synthetic(SPACE, seed=seed, together=0.3)
    problem = run(SearchMethod.surrogate, COSTS, losses, limit=45, budgets=20)
    spread = max(losses.values()) - min(losses.values())
    found = regrets(problem, losses)
    assert problem.evaluator.spent == 45  # of 1,458
    assert found.mean() < 0.005 * spread
    for other in (SearchMethod.evolutionary, SearchMethod.paper, SearchMethod.official):
        assert found.mean() < regrets(run(other, COSTS, losses, limit=45, budgets=20), losses).mean()


def test_the_surrogate_foretells_what_it_measures_next() -> None:
    problem = run(SearchMethod.surrogate, COSTS, LOSSES, limit=60, budgets=20)
    told, true = zip(*problem.foretold, strict=True)
    r2 = coefficient_of_determination(told, true)
    assert r2 is not None
    assert r2 > 0.9


def test_a_space_too_large_to_list_is_searched_from_good_points_on() -> None:
    assert LARGE.size > 50_000

    def measure(specs: Sequence[SliceSpec]) -> list[float]:
        widths = [dict(zip(spec.kept_layers, spec.ffn_widths, strict=True)) for spec in specs]
        return [
            1 + sum((1 + layer / 4) * (1 - found.get(layer, 0) / 48) ** 1.5 for layer in range(9)) / 100
            for found in widths
        ]

    costs = priced(LARGE)
    problem = Problem(costs=costs, budgets=costs.spread(3), evaluator=Evaluator(measure, limit=110))
    METHODS[SearchMethod.surrogate](problem)
    assert 60 < problem.evaluator.spent <= 110
    best = [problem.seen[problem.best(budget)[0]] for budget in problem.budgets]
    chance = random.Random(0)
    drawn = [LARGE.draw(chance) for _ in range(3000)]
    others = measure([LARGE.spec(point) for point in drawn])
    for budget, found in zip(problem.budgets, best, strict=True):
        assert found <= min(loss for point, loss in zip(drawn, others, strict=True) if costs.at(point) <= budget)


def test_the_papers_heuristic_never_narrows_with_depth_and_mixes_neighbouring_widths() -> None:
    space = space_of(SpaceConfig(widths=[12, 24, 48], skip=[]))
    problem = run(SearchMethod.paper, priced(space), synthetic(space), budgets=30)
    for point in problem.seen:
        assert list(point) == sorted(point)
        assert point[-1] - point[0] <= 1


def test_the_official_order_proposes_what_a_plan_does() -> None:
    config = tiny_config()
    space: Space = space_of(SpaceConfig())
    costs = exact_costs(space, config, CostConfig(context_tokens=20))
    problem = run(SearchMethod.official, costs, synthetic(space), budgets=25)
    assert len(problem.seen) > 10
    for point in problem.seen:
        spec = space.spec(point)
        # A plan's limit also counts what nothing computes with.
        size = Plan.of(config, SubModel(spec), context_tokens=20).published.effective
        assert propose(config, Budget(max_effective=size)).shape == spec.shape


@pytest.mark.parametrize("method", [SearchMethod.paper, SearchMethod.official])
@pytest.mark.parametrize("resource", [Resource.effective_parameters, Resource.kv_bytes])
def test_rules_give_the_largest_of_their_kind_that_fits(method: SearchMethod, resource: Resource) -> None:
    space = space_of(SpaceConfig(widths=[12, 24, 48], block=2, skip=[[0], [6, 7]]))
    costs = exact_costs(space, tiny_config(), CostConfig(resource=resource, context_tokens=20))
    losses, order = synthetic(space), [number for numbers in official_order(space) for number in numbers]
    for budget in costs.spread(12):
        problem = Problem(costs=costs, budgets=[budget], evaluator=Evaluator(Measured(space, losses)))
        METHODS[method](problem)
        (found,) = problem.seen
        levels = levels_of(space, found)
        fitting = {
            point: other for point in space
            if costs.at(point) <= budget and (other := levels_of(space, point)).keys() == levels.keys()
        }  # fmt: skip
        assert found in fitting
        if method is SearchMethod.paper:
            alike = [(costs.at(point), sum(point)) for point, other in fitting.items() if is_even(other)]
            assert is_even(levels)
            assert (costs.at(found), sum(found)) == max(alike)
        else:  # each group is as wide as can be beside those before it, up to the first that is not at its widest
            for place, number in enumerate(order):
                alike = [one[number] for one in fitting if all(one[other] == found[other] for other in order[:place])]
                assert found[number] == max(alike)
                if number in levels and found[number] < space.top[number]:
                    break
        if budget == costs.ceiling:
            assert found == space.top


def levels_of(space: Space, point: Point) -> dict[int, int]:
    """The widths of groups that are not left out, by number."""
    found = {
        number: choice - group.may_be_skipped
        for number, (group, choice) in enumerate(zip(space.groups, point, strict=True))
    }
    return {number: level for number, level in found.items() if level >= 0}


def is_even(levels: dict[int, int]) -> bool:
    """Whether widths never narrow with depth, and are two neighbouring ones at most."""
    values = list(levels.values())
    return values == sorted(values) and values[-1] - values[0] <= 1


def test_greedy_ends_where_greedy_for_each_budget_alone_does() -> None:
    losses = synthetic(SPACE, seed=1, together=0.0)
    problem = run(SearchMethod.greedy, COSTS, losses, limit=400, budgets=20)
    ends = [plain_greedy(COSTS, losses, budget) for budget in problem.budgets]
    assert len(set(ends)) > 10
    assert set(ends) <= set(problem.seen)
    for budget, end in zip(problem.budgets, ends, strict=True):
        assert problem.seen[problem.best(budget)[0]] <= losses[end]
    blind = [plain_greedy(COSTS, losses, budget, by_cost=False) for budget in problem.budgets]
    assert not set(blind) <= set(problem.seen)


def plain_greedy(costs: Costs, losses: dict[Point, float], budget: int, *, by_cost: bool = True) -> Point:
    """Greedy for one budget that knows all losses: the step that gains most for its cost, of those that fit."""
    point = costs.floor
    while True:
        steps = [
            other for number in range(len(point))
            if (other := (*point[:number], point[number] + 1, *point[number + 1 :])) in losses
            and costs.at(other) <= budget
        ]  # fmt: skip
        if not steps:
            return point
        here, cost = losses[point], costs.at(point)
        point = max(steps, key=lambda one: (here - losses[one]) / (costs.at(one) - cost if by_cost else 1))


@pytest.mark.parametrize("method", SearchMethod)
def test_a_method_needs_as_many_evaluations_as_its_answers_take(method: SearchMethod) -> None:
    needed = least_evaluations(method, SPACE, 5)
    assert 1 < needed < 50
    calibration = Evaluator(Measured(SPACE, LOSSES))
    result = search(problem_of(COSTS, LOSSES, limit=needed, budgets=5), method, calibration, top_k=1)
    assert result.evaluations <= needed
    if method in (SearchMethod.paper, SearchMethod.official):  # rules say the same, however much more is allowed
        assert (
            search(problem_of(COSTS, LOSSES, limit=SPACE.size, budgets=5), method, calibration, top_k=1).picks
            == result.picks
        )
    few = problem_of(COSTS, LOSSES, limit=needed - 1, budgets=5)
    with pytest.raises(
        ConfigError, match=f"^max_evaluations is {needed - 1}, but method={method} has to measure {needed} "
    ):
        search(few, method, calibration, top_k=1)
    assert few.evaluator.spent == 0


@pytest.mark.parametrize("method", [SearchMethod.sensitivity, SearchMethod.greedy], ids=str)
def test_the_least_that_is_allowed_leaves_little_regret(method: SearchMethod) -> None:
    losses = synthetic(SPACE, seed=1, together=0.0)
    problem = run(method, COSTS, losses, limit=least_evaluations(method, SPACE, 10))
    assert regrets(problem, losses).max() <= (0.005 if method is SearchMethod.greedy else 1e-12)


def test_budgets_that_nothing_keeps_are_refused_before_anything_is_measured() -> None:
    floor = COSTS.at(COSTS.floor)
    measured = Measured(SPACE, LOSSES)
    with pytest.raises(ConfigError, match="the cheapest keeps layers 0-2, 6-8, of widths 12"):
        Problem(costs=COSTS, budgets=[floor + 100, floor - 1], evaluator=Evaluator(measured))
    with pytest.raises(ConfigError, match="no budget is given"):
        Problem(costs=COSTS, budgets=[], evaluator=Evaluator(measured))
    assert measured.asked == []


def test_a_search_chooses_by_both_splits() -> None:
    # On both splits every loss is off by chance, on each by another.
    chance = np.random.default_rng(0)
    searched, checked = (
        {point: loss + 0.02 * chance.normal() for point, loss in synthetic(SPACE, seed=3).items()} for _ in range(2)
    )
    problem = problem_of(COSTS, searched, limit=60)
    calibration = Evaluator(Measured(SPACE, checked))
    result = search(problem, SearchMethod.surrogate, calibration, top_k=5)
    for pick in result.picks:
        assert pick.found.cost <= pick.budget
        point = next(point for point in problem.seen if SPACE.spec(point) == pick.found.spec)
        assert pick.found.loss == searched[point]
        assert pick.found.calibration_loss == checked[point]
        finalists = problem.best(pick.budget, 5)
        assert searched[point] + checked[point] <= min(searched[one] + checked[one] for one in finalists)
    assert result.evaluations == problem.evaluator.spent
    assert result.calibration_evaluations == calibration.spent <= 5 * len(problem.budgets) + 1


def test_a_price_that_is_measured_has_the_last_word() -> None:
    problem = problem_of(COSTS, LOSSES, limit=60, budgets=3)
    calibration = Evaluator(Measured(SPACE, LOSSES))
    dearer = search(
        problem, SearchMethod.greedy, calibration, top_k=2,
        price=lambda spec: round(1.1 * (7 + 10 * sum(spec.ffn_widths) + len(spec.ffn_widths))),
    )  # fmt: skip
    for pick in dearer.picks:
        assert pick.found.measured_cost is not None
        assert pick.found.cost < pick.found.measured_cost <= pick.budget
    with pytest.raises(ConfigError, match="is kept by no sub-model that was measured whole"):
        search(
            problem_of(COSTS, LOSSES, limit=60), SearchMethod.paper, Evaluator(Measured(SPACE, LOSSES)), top_k=2,
            price=lambda _: 10**9,
        )  # fmt: skip
