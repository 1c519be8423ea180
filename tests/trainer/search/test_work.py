# SPDX-License-Identifier: Apache-2.0
"""What methods do themselves, beside measuring, stays little on a space of E4B's shape; counted, not timed."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from model.config import LayerType, TextConfig
from model.slicing.spec import SliceSpec
from tests.trainer.search.spaces import BOUND, priced, space_of
from trainer.search.climb import Neighbours
from trainer.search.evaluator import Evaluator
from trainer.search.methods import SearchMethod, least_evaluations
from trainer.search.problem import Problem
from trainer.search.search import search
from trainer.search.space import Space, SpaceConfig
from trainer.search.surrogate import Summed

LAYERS, FULL = 35, 16384
LOCAL, GLOBAL = LayerType.sliding_attention, LayerType.full_attention
E4B = TextConfig(
    layer_types=(LOCAL, LOCAL, LOCAL, LOCAL, GLOBAL) * 7, intermediate_size=(FULL,) * LAYERS,
    activation_sparsity_pattern=(0.95,) * 10 + (0.0,) * 25, num_kv_shared_layers=15,
)  # fmt: skip
SPACE = Space.of(SpaceConfig(widths=[2048, 4096, 8192, FULL], skip=[[20], [21], [22], [23], [24], [30]]), E4B)


def losses(specs: Sequence[SliceSpec]) -> list[float]:
    """Layers matter differently, and the less the more there is of the others."""
    found = []
    for spec in specs:
        widths = dict(zip(spec.kept_layers, spec.ffn_widths, strict=True))
        lost = [(1 + layer % 7) * (1 - widths.get(layer, 0) / FULL) ** 1.5 for layer in range(LAYERS)]
        found.append(1.5 + 0.01 * sum(lost) + 1e-5 * sum(lost) ** 2)
    return found


@dataclass
class Work:
    """Calls of functions, in Python and behind it, and numbers that went through arrays."""

    calls: int = 0
    points: int = 0
    cubes: int = 0


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Count while it lasts."""
    work, at, eigh = Work(), Summed.at, np.linalg.eigh

    def counting_points(self: Summed, points: Any) -> Any:
        work.points += len(points)
        return at(self, points)

    def counting_cubes(matrix: Any) -> Any:
        work.cubes += len(matrix) ** 3
        return eigh(matrix)

    def counting_calls(_: object, event: str, __: object) -> None:
        work.calls += event in ("call", "c_call")

    before: Callable[..., object] | None = sys.getprofile()
    with monkeypatch.context() as patch:
        patch.setattr(Summed, "at", counting_points)
        patch.setattr(np.linalg, "eigh", counting_cubes)
        sys.setprofile(counting_calls)
        try:
            yield work
        finally:
            sys.setprofile(before)


@pytest.mark.parametrize("method", SearchMethod)
def test_a_method_does_little_itself(method: SearchMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = priced(SPACE)
    limit = max(100, least_evaluations(method, SPACE, 8))
    problem = Problem(costs=costs, budgets=costs.spread(8), evaluator=Evaluator(losses, limit=limit))
    with counted(monkeypatch) as work:
        result = search(problem, method, Evaluator(losses), top_k=3)
    assert len(result.picks) == 8
    # Shape checks of tests are among the calls. Without them a million take about a second, as do a million points; a
    # cube takes a nanosecond. Evolution brings every child under its budget step by step.
    assert work.calls < (6_000_000 if method is SearchMethod.evolutionary else 1_000_000)
    assert work.points < 1_000_000
    assert work.cubes < 100_000_000


def test_neighbours_are_all_that_lie_one_or_two_steps_away() -> None:
    space = space_of(BOUND)
    costs = priced(space)
    for point in space:
        budget = costs.at(point) + 20
        expected = {
            other for other in space
            if costs.at(other) <= budget
            and 1 <= sum(a != b for a, b in zip(point, other, strict=True)) <= 2
            and max(abs(a - b) for a, b in zip(point, other, strict=True)) == 1
        }  # fmt: skip
        found = list(map(tuple, Neighbours(costs).of(point, budget).tolist()))
        assert set(found) == expected
        assert len(found) == len(expected)


def test_a_space_has_as_many_neighbours_of_a_point_as_pairs_of_steps() -> None:
    groups = len(SPACE.groups)
    assert len(Neighbours(priced(SPACE)).steps) == 2 * groups + 4 * math.comb(groups, 2)
