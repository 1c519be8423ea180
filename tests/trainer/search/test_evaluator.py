# SPDX-License-Identifier: Apache-2.0
"""What was measured is counted once, kept, and never exceeds what is allowed."""

from __future__ import annotations

import pytest

from model.errors import ConfigError, InputError
from model.slicing.spec import SliceSpec
from tests.trainer.search.spaces import Measured, space_of, synthetic
from trainer.search.evaluator import Evaluator
from trainer.search.space import SpaceConfig

SPACE = space_of(SpaceConfig())
LOSSES = synthetic(SPACE)
POINTS = list(SPACE)


def test_the_same_layers_and_widths_are_measured_once_whatever_their_name() -> None:
    measured = Measured(SPACE, LOSSES)
    evaluator = Evaluator(measured, limit=5)
    first, second = SPACE.spec(POINTS[0]), SPACE.spec(POINTS[1])
    again = SliceSpec("another", first.kept_layers, first.ffn_widths)
    assert evaluator.losses([first, second, again]) == [LOSSES[POINTS[0]], LOSSES[POINTS[1]], LOSSES[POINTS[0]]]
    assert evaluator.losses([again]) == [LOSSES[POINTS[0]]]
    assert (evaluator.spent, evaluator.left, len(measured.asked)) == (2, 3, 2)


def test_more_than_allowed_is_refused_before_anything_is_measured() -> None:
    measured = Measured(SPACE, LOSSES)
    evaluator = Evaluator(measured, limit=2)
    specs = [SPACE.spec(point) for point in POINTS[:3]]
    assert evaluator.affordable(specs) == specs[:2]
    with pytest.raises(ConfigError, match="3 more sub-models are to be measured, but only 2 of 2 are left"):
        evaluator.losses(specs)
    assert measured.asked == []
    evaluator.losses(specs[:2])
    assert evaluator.affordable([specs[2], specs[0]]) == [specs[0]]  # known ones cost nothing


def test_losses_that_are_known_from_before_are_not_counted() -> None:
    first = Evaluator(Measured(SPACE, LOSSES))
    specs = [SPACE.spec(point) for point in POINTS[:3]]
    first.losses(specs)
    measured = Measured(SPACE, LOSSES)
    second = Evaluator(measured, limit=0, known=dict(first.known))
    assert second.losses(specs) == first.losses(specs)
    assert (second.spent, measured.asked) == (0, [])


def test_a_loss_that_is_not_finite_is_refused_by_name() -> None:
    evaluator = Evaluator(lambda specs: [float("nan") for _ in specs])
    with pytest.raises(InputError, match=r"layers \[0, 1, 2, 6, 7, 8\] at widths .* is nan"):
        evaluator.losses([SPACE.spec(POINTS[0])])
