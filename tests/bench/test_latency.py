# SPDX-License-Identifier: Apache-2.0
"""The comparison of sums of layers with whole sub-models: how it counts agreement, and what it tells."""

from __future__ import annotations

import pytest

from tests.bench.latency import CONFIG, SPACE, Agreement, Measured, drawn, page
from trainer.search.space import Space


def test_agreement_tells_bias_from_order() -> None:
    measured = [1.0, 2.0, 3.0, 4.0]
    same = Agreement.of(measured, measured)
    assert (same.r2, same.rank, same.median_error, same.worst_error, same.bias) == (1, 1, 0, 0, 0)
    slow = Agreement.of([1.2, 2.4, 3.6, 4.8], measured)
    assert slow.bias == pytest.approx(0.2)
    assert slow.worst_error == pytest.approx(0.2)
    assert slow.rank == pytest.approx(1)
    assert slow.r2 < 1
    turned = Agreement.of(measured[::-1], measured)
    assert turned.rank == pytest.approx(-1)
    assert turned.r2 < 0


def test_the_page_tells_what_was_foretold_and_what_noise_there_is() -> None:
    found = Measured(
        "decode", [0.001, 0.002, 0.004], [0.0011, 0.0022, 0.0044], ([0.001, 0.002, 0.004], [0.001, 0.002, 0.004])
    )
    text = page([found], "the command", "0.1 to 0.2")
    assert "2\nsub-models drawn by chance" in text
    assert "| decode | 1.0 to 4.0 ms | sum of layers | 0.955 | 1.000 | 10.0% | 10.0% | +10.0% |" in text
    assert "| | | half of the rounds by the others | 1.000 | 1.000 | 0.0% | 0.0% | +0.0% |" in text
    assert "`the command`" in text
    assert "0.1 to 0.2" in text


def test_sub_models_are_drawn_by_chance_with_the_parent_last() -> None:
    space = Space.of(SPACE, CONFIG)
    points = drawn(space, 20)
    assert len(points) == 21
    assert points[-1] == space.top
    assert all(space.is_legal(point) for point in points)
