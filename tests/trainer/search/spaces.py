# SPDX-License-Identifier: Apache-2.0
"""Small spaces, losses that are known everywhere, and the truth about them by trying all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from model.config import TextConfig
from model.slicing.spec import Shape, SliceSpec
from tests.tiny import TINY_TEXT
from trainer.search.cost import Costs, Resource
from trainer.search.evaluator import Evaluator
from trainer.search.problem import Problem
from trainer.search.space import Point, Space, SpaceConfig

WIDE = dataclasses.replace(TINY_TEXT, intermediate_size=(48, 48, 48, 40, 48, 48, 48, 24, 48))
# As many points as can be listed often: 3 ** 6 * 3, of which the block of layers 3 to 5 is one group.
BLOCK = SpaceConfig(widths=[12, 24, 48], skip=[[3, 4, 5]])
# Producers that others read (layers 1 and 2) may be left out, if their readers are.
BOUND = SpaceConfig(widths=[24], skip=[[1], [2], [3, 4], [5], [6, 7], [8]])


def space_of(written: SpaceConfig, config: TextConfig = TINY_TEXT) -> Space:
    return Space.of(written, config)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Spaces of at most a few thousand points, some of whose groups are bound to others."""
    config = draw(st.sampled_from((TINY_TEXT, WIDE)))
    written = draw(
        st.sampled_from((
            BOUND, SpaceConfig(block=3, widths=[8, 16, 24]), SpaceConfig(),
            SpaceConfig(block=2, widths=[3, 24], skip=[[0], [8]]), SpaceConfig(widths=[24], skip=[[7], [2, 5, 8]]),
            SpaceConfig(widths=[10, 20], block=4, skip=[[1, 2, 3, 4, 5, 6, 7, 8]]),
        ))
    )  # fmt: skip
    return Space.of(written, config)


@st.composite
def tables(draw: st.DrawFn, space: Space) -> tuple[tuple[int, ...], ...]:
    """A number for every choice, some of them equal, some negative."""
    return tuple(
        tuple(draw(st.lists(st.integers(-5, 30), min_size=len(group.choices), max_size=len(group.choices))))
        for group in space.groups
    )


def priced(space: Space, table: Sequence[Sequence[int]] | None = None) -> Costs:
    """Costs by a table; without one, a choice costs its neurons."""
    if table is None:
        table = [[10 * sum(choice) + len(choice) for choice in group.choices] for group in space.groups]
    return Costs(Resource.weight_bytes, space, 7, tuple(map(tuple, table)))


def synthetic(space: Space, *, seed: int = 0, together: float = 0.3, noise: float = 0.0) -> dict[Point, float]:
    """Losses of all points: sums over groups of what wider layers gain, and over pairs of groups."""
    chance = np.random.default_rng(seed)
    points = list(space)
    worth = chance.gamma(2.0, 0.02, len(space.groups))
    added = [
        worth[number] * np.linspace(1.0, 0.0, len(group.choices)) ** chance.uniform(1.0, 2.5)
        for number, group in enumerate(space.groups)
    ]
    each = np.array([[added[number][choice] for number, choice in enumerate(point)] for point in points])
    pairs = np.triu(chance.normal(0.3, 1.0, (len(worth), len(worth))) * together, 1) / worth.mean()
    losses = 1.5 + each.sum(axis=1) + np.einsum("pi,ij,pj->p", each, pairs, each)
    losses += noise * chance.normal(size=len(points))
    return dict(zip(points, losses.tolist(), strict=True))


class Measured:
    """Measures by looking up, and counts how often each sub-model was asked for."""

    def __init__(self, space: Space, losses: Mapping[Point, float]) -> None:
        self.losses: dict[Shape, float] = {space.spec(point).shape: loss for point, loss in losses.items()}
        self.asked: list[Shape] = []

    def __call__(self, specs: Sequence[SliceSpec]) -> list[float]:
        self.asked += [spec.shape for spec in specs]
        return [self.losses[spec.shape] for spec in specs]


def problem_of(
    costs: Costs, losses: Mapping[Point, float], *, limit: int | None, budgets: int = 10, seed: int = 0
) -> Problem:
    evaluator = Evaluator(Measured(costs.space, losses), limit=limit)
    return Problem(costs=costs, budgets=costs.spread(budgets), evaluator=evaluator, seed=seed)
