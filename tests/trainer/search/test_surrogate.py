# SPDX-License-Identifier: Apache-2.0
"""The fitted model of losses: what it is told of itself is so, and it learns sums and what choices do together."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from tests.trainer.search.spaces import BLOCK, space_of, synthetic
from trainer.search.problem import coefficient_of_determination
from trainer.search.surrogate import Strengths, Surrogate, combined, kernel_parts, prior

SPACE = space_of(BLOCK)
POINTS = list(SPACE)
BELIEVED = [[0.1 * (len(group.choices) - 1 - step) for step in range(len(group.choices))] for group in SPACE.groups]


def fit(count: int, *, together: float, seed: int = 0) -> tuple[Surrogate, dict[tuple[int, ...], float]]:
    losses = synthetic(SPACE, seed=seed, together=together)
    drawn = random.Random(seed).sample(POINTS, count)
    return Surrogate.fit(BELIEVED, drawn, [losses[point] for point in drawn]), losses


def r2(model: Surrogate, losses: dict[tuple[int, ...], float]) -> float:
    known = set(map(tuple, model.points.tolist()))
    others = [point for point in POINTS if point not in known]
    found = coefficient_of_determination(model.predict(others).tolist(), [losses[point] for point in others])
    assert found is not None
    return found


def test_sums_are_learnt_from_few_points() -> None:
    model, losses = fit(40, together=0.0)
    assert r2(model, losses) > 0.999


def test_what_choices_do_together_is_learnt_from_more() -> None:
    few, losses = fit(40, together=0.3)
    many, _ = fit(200, together=0.3)
    assert r2(few, losses) > 0.8
    assert r2(many, losses) > max(0.98, r2(few, losses))


def test_the_error_of_what_is_left_out_is_that_of_fitting_without_it() -> None:
    model, losses = fit(12, together=0.3)
    points = model.points
    target = np.array([losses[tuple(point)] for point in points.tolist()]) - prior(model.positions, points)
    target = (target - model.offset) / model.scale
    kernel = combined(kernel_parts(model.positions, points, points), model.strengths)
    errors = []
    for left_out in range(len(points)):
        others = [number for number in range(len(points)) if number != left_out]
        matrix = kernel[np.ix_(others, others)] + model.strengths.noise * np.eye(len(others))
        errors.append(target[left_out] - kernel[left_out, others] @ np.linalg.solve(matrix, target[others]))
    assert model.left_out == pytest.approx(np.mean(np.square(errors)) * model.scale**2, rel=1e-4)


def test_the_kernels_sum_over_pairs_is_the_sum_over_pairs() -> None:
    model, _ = fit(6, together=0.3)
    left, right = model.points[:2], model.points[3:]
    _, pairs, bend, line = kernel_parts(model.positions, left, right)
    place, groups = model.positions.place, len(SPACE.groups)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            products = [place[group, one[group]] * place[group, other[group]] for group in range(groups)]
            expected = sum(products[a] * products[b] for a in range(groups) for b in range(a))
            assert pairs[i, j] == pytest.approx(expected)
            assert line[i, j] == pytest.approx(sum(products))
            sizes = [sum(place[group, point[group]] for group in range(groups)) for point in (one, other)]
            assert bend[i, j] == pytest.approx((sizes[0] * sizes[1]) ** 2)


def test_what_is_predicted_is_the_kernel_summed_over_what_was_measured() -> None:
    model, _ = fit(60, together=0.3)
    for strengths in (model.strengths, Strengths(0.3, 1.0, 1e-4)):
        other = dataclasses.replace(model, strengths=strengths)
        points = np.array(POINTS)
        kernel = combined(kernel_parts(model.positions, points, model.points), strengths)
        expected = prior(model.positions, points) + model.offset + model.scale * (kernel @ model.weights)
        np.testing.assert_allclose(other.predict(POINTS), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("told", "measured", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 1.0),
        ([1.5, 1.5], [1.0, 2.0], 0.0),
        ([1.0], [1.0], None),
        ([1.0, 2.0], [3.0, 3.0], None),
    ],
)
def test_r2_of_little_is_none(told: list[float], measured: list[float], expected: float | None) -> None:
    assert coefficient_of_determination(told, measured) == expected
