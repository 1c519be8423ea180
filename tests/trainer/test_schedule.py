# SPDX-License-Identifier: Apache-2.0
"""The learning rate of a step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError
from trainer.schedule import Decay, Schedule, ScheduleConfig

FALLING = [Decay.linear, Decay.cosine, Decay.wsd]


def rates(decay: Decay, *, max_steps: int = 10, **changes: Any) -> list[float]:
    share = {"decay_share": 0.4} if decay is Decay.wsd else {}
    floor = {} if decay is Decay.constant else {"final_share": 0.1}
    warmup = {} if "warmup_share" in changes else {"warmup_steps": 2}
    values: dict[str, Any] = warmup | floor | share | changes
    schedule = Schedule(config=ScheduleConfig(decay=decay, **values), learning_rate=1.0, max_steps=max_steps)
    return [schedule.at(step) for step in range(max_steps)]


@pytest.mark.parametrize("decay", Decay)
def test_the_warm_up_rises_evenly_to_the_peak(decay: Decay) -> None:
    assert rates(decay)[:3] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("decay", Decay)
def test_a_warm_up_by_share_is_one_by_steps(decay: Decay) -> None:
    by_share = rates(decay, max_steps=40, warmup_share=0.15)
    assert by_share == rates(decay, max_steps=40, warmup_steps=6)


def test_a_constant_rate_stays() -> None:
    assert rates(Decay.constant)[2:] == [1.0] * 8


def test_linear_decay_would_reach_its_share_in_the_step_after_the_last() -> None:
    assert rates(Decay.linear)[-2:] == pytest.approx([0.1 + 0.9 * 2 / 8, 0.1 + 0.9 / 8])


def test_cosine_decay_is_half_way_down_in_the_middle() -> None:
    assert rates(Decay.cosine)[6] == pytest.approx(0.1 + 0.9 / 2)


def test_wsd_stays_at_the_peak_and_falls_in_a_straight_line_at_the_end() -> None:
    assert rates(Decay.wsd) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.1 + 0.9 * 0.75, 0.55, 0.1 + 0.9 * 0.25])


def test_wsd_that_falls_from_the_warm_up_on_is_linear() -> None:
    assert rates(Decay.wsd, decay_share=0.8) == rates(Decay.linear)


@st.composite
def runs(draw: st.DrawFn, decays: list[Decay]) -> tuple[Decay, dict[str, Any]]:
    """A decay, and values that fit together."""
    decay = draw(st.sampled_from(decays))
    max_steps = draw(st.integers(2, 200))
    falling = draw(st.integers(1, max_steps))
    warmup = draw(st.integers(0, max_steps - falling))
    shares: dict[str, Any] = {"decay_share": falling / max_steps} if decay is Decay.wsd else {}
    shares |= {"warmup_share": warmup / max_steps} if draw(st.booleans()) else {"warmup_steps": warmup}
    if decay is not Decay.constant:
        shares["final_share"] = draw(st.floats(0, 1))
    return decay, {"max_steps": max_steps, **shares}


def warmup_of(values: dict[str, Any]) -> int:
    steps: int | None = values.get("warmup_steps")
    return round(values["warmup_share"] * values["max_steps"]) if steps is None else steps


@given(run=runs(list(Decay)))
def test_the_rate_is_positive_in_every_step_and_never_above_the_peak(run: tuple[Decay, dict[str, Any]]) -> None:
    decay, values = run
    assert all(0 < rate <= 1 + 1e-12 for rate in rates(decay, **values))  # rounding


@given(run=runs(FALLING))
def test_the_rate_rises_in_the_warm_up_meets_the_peak_and_never_rises_again(run: tuple[Decay, dict[str, Any]]) -> None:
    decay, values = run
    warmup, found = warmup_of(values), rates(decay, **values)
    assert all(before < after for before, after in pairwise(found[:warmup]))
    assert found[warmup] == pytest.approx(1.0)  # at least one step is not of the warm-up
    assert all(before >= after - 1e-12 for before, after in pairwise(found[warmup:]))


@given(run=runs(list(Decay)))
def test_no_two_steps_are_further_apart_than_the_steepest_slope(run: tuple[Decay, dict[str, Any]]) -> None:
    decay, values = run
    warmup, max_steps = warmup_of(values), values["max_steps"]
    falling = round(values["decay_share"] * max_steps) if decay is Decay.wsd else max_steps - warmup
    steepest = max(1 / (warmup + 1), 1.5708 / falling)  # of half a cosine: half of pi
    found = rates(decay, **values)
    assert all(abs(a - b) <= steepest + 1e-9 for a, b in pairwise(found))


@given(run=runs([Decay.wsd]))
def test_wsd_is_at_the_peak_from_the_warm_up_to_the_decay(run: tuple[Decay, dict[str, Any]]) -> None:
    decay, values = run
    falling = round(values["decay_share"] * values["max_steps"])
    plateau = rates(decay, **values)[warmup_of(values) : values["max_steps"] - falling + 1]
    assert plateau == pytest.approx([1.0] * len(plateau))


@pytest.mark.parametrize(("max_steps", "expected"), [(1, 0), (4, 0), (5, 1), (30, 6), (49, 9), (50, 10), (5000, 10)])
@pytest.mark.parametrize("decay", FALLING)
def test_a_warm_up_that_is_not_given_is_of_ten_steps_or_a_fifth_of_a_short_run(
    decay: Decay, max_steps: int, expected: int
) -> None:
    found = rates(decay, max_steps=max_steps, warmup_steps=None)
    assert found == rates(decay, max_steps=max_steps, warmup_steps=expected)


def test_a_warm_up_that_is_not_given_leaves_room_for_the_decay() -> None:
    assert rates(Decay.wsd, warmup_steps=None, decay_share=0.9) == rates(Decay.wsd, warmup_steps=1, decay_share=0.9)
    assert rates(Decay.wsd, warmup_steps=None, decay_share=1.0) == rates(Decay.wsd, warmup_steps=0, decay_share=1.0)


def test_a_constant_rate_has_no_warm_up_that_is_not_given() -> None:
    assert rates(Decay.constant, warmup_steps=None) == [1.0] * 10


def test_a_run_is_the_same_whether_its_warm_up_was_given_or_not() -> None:
    given, usual = (
        Schedule(config=ScheduleConfig(warmup_steps=steps), learning_rate=1.0, max_steps=60) for steps in (10, None)
    )
    assert given.identity == usual.identity


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps is 11, but the run has 10 steps"):
        rates(Decay.cosine, warmup_steps=11)


def test_a_warm_up_may_take_the_whole_run() -> None:
    assert rates(Decay.cosine, warmup_steps=10)[-1] == pytest.approx(10 / 11)


@pytest.mark.parametrize("max_steps", range(1, 40))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_shares_of_one_whole_fit_a_run_of_any_length(share: float, max_steps: int) -> None:
    changes = {"warmup_share": share, "decay_share": 1 - share}
    assert all(0 < rate <= 1 for rate in rates(Decay.wsd, max_steps=max_steps, **changes))


def test_a_wsd_without_room_for_its_decay_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes 4 steps and the decay 7 \(decay_share 0\.7\), but the run has 10"):
        rates(Decay.wsd, warmup_steps=4, decay_share=0.7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": -1}, r"schedule\.warmup_steps is -1"),
        ({"warmup_share": 1.5}, r"schedule\.warmup_share is 1\.5; it must be a share"),
        ({"warmup_share": float("nan")}, r"schedule\.warmup_share is nan"),
        ({"final_share": -0.1}, r"schedule\.final_share is -0\.1"),
        (
            {"warmup_steps": 0, "warmup_share": 0.1},
            r"warmup_steps is 0 and schedule\.warmup_share 0\.1; .* set the other",
        ),
        (
            {"decay": Decay.constant, "final_share": 0.5},
            r"final_share is 0\.5, but constant falls to none; set it to 0",
        ),
        ({"decay": Decay.wsd}, r"schedule\.decay_share is None; wsd falls in a share"),
        ({"decay": Decay.wsd, "decay_share": 0.0}, r"schedule\.decay_share is 0\.0"),
        ({"decay": Decay.cosine, "decay_share": 0.2}, r"decay_share is 0\.2, but cosine has none; set it to null"),
    ],
)
def test_a_value_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig(**changes)
