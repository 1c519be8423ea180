# SPDX-License-Identifier: Apache-2.0
"""What is said where all items are alike, and of many differences at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from trainer.evaluation.metric import Metric, ratio, share
from trainer.evaluation.statistics import (
    Sample,
    StatisticsConfig,
    adjusted,
    band,
    difference,
    differences,
    interval,
    p_of_zero,
    samples,
)

SHARE = share("accuracy", "share of answers", lambda values: values["value"])
MEAN = Metric(
    name="mean", unit="nats", higher_is_better=False, parts=lambda values: (values["value"], 1.0), finish=ratio
)
ERRORS = Metric(
    name="wer", unit="errors per word", higher_is_better=False, parts=lambda values: tuple(values["value"]),
    finish=ratio,
)  # fmt: skip


def found(metric: Metric, *, resamples: int = 400, seed: int = 1, **values: Sequence) -> dict[str, Sample]:
    items = {name: [{"value": value} for value in own] for name, own in values.items()}
    config = StatisticsConfig(seed=seed, num_resamples=resamples)
    return samples([metric], items, config, task="t")[metric.name]


@pytest.mark.parametrize("number", [1, 3, 20, 500])
def test_all_right_or_all_wrong_has_the_limits_of_clopper_and_pearson(number: int) -> None:
    alike = found(SHARE, right=[1.0] * number, wrong=[0.0] * number)
    right, wrong = (interval(alike[name], confidence=0.95) for name in ("right", "wrong"))
    assert (right.low, right.high) == (pytest.approx(0.025 ** (1 / number)), 1.0)
    assert (wrong.low, wrong.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / number)))


@pytest.mark.parametrize(("chance", "number"), [(0.02, 20), (0.95, 20), (0.01, 100), (0.5, 3), (0.9, 12)])
def test_intervals_of_shares_hold_as_often_as_they_say_where_items_are_often_alike(chance: float, number: int) -> None:
    """Not by chance: every number of right answers there may be, with how likely it is."""
    held = 0.0
    for right in range(number + 1):
        likely = math.comb(number, right) * chance**right * (1 - chance) ** (number - right)
        if likely < 1e-6:
            continue
        sample = found(SHARE, resamples=1000, one=[1.0] * right + [0.0] * (number - right))["one"]
        limits = interval(sample, confidence=0.95)
        held += likely * (limits.low <= chance <= limits.high)
    assert held >= 0.95
    only_alike = chance**number + (1 - chance) ** number
    assert only_alike > 0.01  # what intervals without width would miss


def test_a_share_that_all_items_have_alike_may_be_more_or_less_of_others() -> None:
    limits = interval(found(SHARE, one=[0.25] * 9)["one"], confidence=0.9)
    others = 1 - 0.05 ** (1 / 9)
    assert limits.low == pytest.approx(0.25 - others * 0.25)
    assert limits.high == pytest.approx(0.25 + others * 0.75)


@pytest.mark.parametrize(
    ("metric", "values"), [(MEAN, [0.1] * 7), (MEAN, [0.1]), (ERRORS, [(0, 4), (0, 9)]), (ERRORS, [(2, 4), (3, 6)])]
)
def test_figures_that_nothing_bounds_have_no_interval_of_items_alike(metric: Metric, values: list) -> None:
    limits = interval(found(metric, one=values)["one"], confidence=0.95)
    assert math.isfinite(limits.value)
    assert math.isnan(limits.low)
    assert math.isnan(limits.high)


def test_where_no_item_differs_there_is_no_difference_to_be_seen_and_still_an_interval_of_shares() -> None:
    answers = [0.0, 1.0, 1.0, 1.0] * 5
    same = found(SHARE, a=answers, b=answers)
    between = difference(same["a"], same["b"], confidence=0.95)
    others = 1 - 0.025 ** (1 / 20)
    assert (between.value, between.p) == (0.0, 1.0)
    assert (between.low, between.high) == (pytest.approx(-others), pytest.approx(others))


def test_one_item_alone_proves_no_difference() -> None:
    one = found(MEAN, a=[1.0], b=[0.0])
    assert math.isnan(difference(one["a"], one["b"], confidence=0.95).p)


@pytest.mark.parametrize(("number", "sign"), [(1, 1), (4, -1), (9, 1)])
def test_all_right_beside_all_wrong_is_as_likely_as_coins_that_fall_alike(number: int, sign: int) -> None:
    apart = found(SHARE, a=[float(sign > 0)] * number, b=[float(sign < 0)] * number)
    between = difference(apart["a"], apart["b"], confidence=0.95)
    assert between.p == pytest.approx(2 * 0.5**number)
    assert (between.low <= 0 <= between.high) == (between.p >= 0.05)


def test_differences_of_few_items_agree_with_their_intervals() -> None:
    """Of a hundred items two differ: in one draw of seven none does, and zero is well within what may be."""
    few = found(SHARE, resamples=2000, a=[1.0] * 100, b=[1.0] * 98 + [0.0] * 2)
    between = difference(few["a"], few["b"], confidence=0.95)
    assert between.low == 0.0
    assert between.p > 0.05


def test_a_band_of_shares_stays_among_shares() -> None:
    generator = np.random.default_rng(2)
    drawn = {f"s{number}": (generator.random(12) < 0.9).astype(float).tolist() for number in range(12)}
    curve = list(found(SHARE, **drawn).values())
    assert all(0 <= wide.low <= wide.value <= wide.high <= 1 for wide in band(curve, confidence=0.95))


def test_a_band_is_wider_where_all_are_right_than_the_interval_by_itself() -> None:
    generator = np.random.default_rng(0)
    drawn = {f"s{number}": (generator.random(20) < 0.6).astype(float).tolist() for number in range(9)}
    curve = found(SHARE, right=[1.0] * 20, **drawn)
    wide = band(list(curve.values()), confidence=0.95)[0]
    assert (wide.low, wide.high) == (pytest.approx((0.05 / 10 / 2) ** (1 / 20)), 1.0)


@pytest.mark.parametrize("metric", [MEAN, SHARE])
def test_many_sub_models_that_differ_by_chance_are_seldom_told_apart(metric: Metric) -> None:
    """Eight that are as good as the parent: any of their adjusted p-values is at most 0.1 in about a tenth of cases."""
    trials, any_adjusted, any_own = 100, 0, 0
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        hard = generator.normal(size=(100, 1))
        values = hard + 0.7 * generator.normal(size=(100, 9))
        if metric is SHARE:
            values = (values > 0).astype(float)
        curve = found(metric, resamples=200, seed=trial, **{f"s{n}": values[:, n].tolist() for n in range(9)})
        parent = curve.pop("s8")
        between = [sample.minus(parent) for sample in curve.values()]
        any_own += min(map(p_of_zero, between)) <= 0.1
        any_adjusted += min(adjusted(between)) <= 0.1
    assert 0.02 <= any_adjusted / trials <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / trials)
    assert any_own / trials > 0.3  # what comes of not adjusting


def test_adjusting_hides_no_plain_difference_and_keeps_the_order() -> None:
    generator = np.random.default_rng(3)
    parent = generator.normal(size=200)
    shifts = {"none": 0.0, "small": 0.02, "middle": 0.12, "large": 0.6}
    moved = {name: (parent + shift + 0.5 * generator.normal(size=200)).tolist() for name, shift in shifts.items()}
    curve = found(MEAN, resamples=2000, parent=parent.tolist(), **moved)
    own_parent = curve.pop("parent")
    many = differences(curve, own_parent, confidence=0.95)
    alone = {name: difference(sample, own_parent, confidence=0.95) for name, sample in curve.items()}
    assert 1 / 2001 <= many["large"].p < 0.002
    assert all(many[name].p >= alone[name].p for name in many)
    assert many["middle"].p > alone["middle"].p > 1 / 2001
    far = sorted(many, key=lambda name: abs(many[name].value))
    assert [many[name].p for name in far] == sorted((one.p for one in many.values()), reverse=True)
    assert [(one.value, one.low, one.high) for one in many.values()] == [
        (one.value, one.low, one.high) for one in alone.values()
    ]


def test_one_comparison_is_not_adjusted_and_the_same_one_twice_hardly() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.normal(size=80), generator.normal(0.25, 1, 80)
    curve = found(MEAN, resamples=2000, a=a.tolist(), b=b.tolist())
    between = curve["b"].minus(curve["a"])
    own = p_of_zero(between)
    assert adjusted([between]) == [own]
    assert adjusted([between] * 5) == pytest.approx([own] * 5, abs=0.02)


def test_what_differs_in_nothing_or_in_all_alike_takes_its_part_in_adjusting() -> None:
    curve = found(SHARE, parent=[1.0] * 12, same=[1.0] * 12, wrong=[0.0] * 12, half=[1.0, 0.0] * 6)
    parent = curve.pop("parent")
    many = differences(curve, parent, confidence=0.95)
    assert many["same"].p == 1.0
    assert many["wrong"].p == pytest.approx(3 * 2 * 0.5**12)
    assert many["half"].p < 0.02
    none = found(MEAN, parent=[1.0], a=[2.0], b=[1.0])
    parent = none.pop("parent")
    ps = [one.p for one in differences(none, parent, confidence=0.95).values()]
    assert math.isnan(ps[0])
    assert ps[1] == 1.0


def test_the_chance_that_still_figures_take_is_not_given_to_others_too() -> None:
    generator = np.random.default_rng(5)
    parent = (generator.random(150) < 0.5).astype(float)
    others = {name: np.where(generator.random(150) < 0.2, 1 - parent, parent) for name in "abc"}
    drawn = found(SHARE, parent=parent.tolist(), **{name: values.tolist() for name, values in others.items()})
    moving = [drawn[name].minus(drawn["parent"]) for name in "abc"]
    still = drawn["parent"].minus(drawn["parent"])
    alone, beside = adjusted(moving), adjusted([*moving, still])
    assert max(alone) > 0.05
    assert beside[:3] == pytest.approx([min(1.0, p * 4 / 3) for p in alone])
    for narrow, wide in zip(band(moving, confidence=0.9), band([*moving, still], confidence=0.9), strict=False):
        assert wide.low < narrow.low
        assert narrow.high < wide.high
