# SPDX-License-Identifier: Apache-2.0
"""The knapsack gives what trying every point gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.search.spaces import priced, space_of, spaces, tables
from trainer.search.knapsack import solve, total
from trainer.search.space import Space, SpaceConfig


@settings(max_examples=60, deadline=None)
@given(st.data(), spaces())
def test_the_knapsack_is_what_trying_all_gives(data: st.DataObject, space: Space) -> None:
    costs = priced(space, data.draw(tables(space)))
    values = [
        [data.draw(st.integers(-8, 8)) / 8 for _ in group.choices] for group in space.groups
    ]  # eighths: sums are exact, so equal ones are equal
    every = list(space)
    lowest = min(map(costs.at, every))
    budgets = data.draw(st.lists(st.integers(lowest - 3, lowest + 120), min_size=1, max_size=4))
    for budget, answer in zip(budgets, solve(values, costs, budgets), strict=True):
        within = [point for point in every if costs.at(point) <= budget]
        if not within:
            assert answer is None
            continue
        assert answer is not None
        assert space.is_legal(answer)
        best = min((total(values, point), costs.at(point)) for point in within)
        assert (total(values, answer), costs.at(answer)) == best


def test_a_space_too_large_to_list_is_solved_exactly() -> None:
    # Worth its cost in every group: then only the budget matters, and the best uses all of it.
    space = space_of(SpaceConfig(widths=list(range(1, 41)), skip=[]))
    assert space.size == 40**9
    costs = priced(space)
    values = [[-float(cost) for cost in of_group] for of_group in costs.table]
    budgets = costs.spread(7)
    for budget, answer in zip(budgets, solve(values, costs, budgets), strict=True):
        assert answer is not None
        assert budget - 10 < costs.at(answer) <= budget  # a neuron costs 10
        assert total(values, answer) == pytest.approx(costs.constant - costs.at(answer))
