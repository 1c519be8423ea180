# SPDX-License-Identifier: Apache-2.0
"""Intervals hold what they are to hold as often as they say, and sub-models are compared on the same draws."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np
import pytest

from model.errors import ConfigError, InputError
from trainer.evaluation.metric import Metric, Values, ratio
from trainer.evaluation.statistics import (
    Sample,
    StatisticsConfig,
    band,
    difference,
    drawn,
    interval,
    p_of_zero,
    samples,
)

LOSS = Metric(
    name="loss", unit="nats per token", higher_is_better=False,
    parts=lambda values: (values["sum"], values["tokens"]), finish=ratio,
)  # fmt: skip
PERPLEXITY = Metric(
    name="perplexity", unit="tokens", higher_is_better=False,
    parts=LOSS.parts, finish=lambda sums: np.exp(ratio(sums)),
)  # fmt: skip
MEAN = Metric(
    name="mean", unit="share", higher_is_better=True, parts=lambda values: (values["value"], 1.0), finish=ratio
)


def of(values: Sequence[float]) -> list[Values]:
    return [{"value": value} for value in values]


def config(**changes: int) -> StatisticsConfig:
    return StatisticsConfig(**{"seed": 1, "num_resamples": 400} | changes)


def means(found: Mapping[str, Sequence[float]], **changes: int) -> dict[str, Sample]:
    return samples([MEAN], {name: of(values) for name, values in found.items()}, config(**changes), task="t")["mean"]


def within_binomial_error(hits: int, trials: int, chance: float, *, bias: float = 0.01) -> bool:
    """Whether so many hits are no surprise; intervals from few items are known to be a little short."""
    return abs(hits / trials - chance) <= 3 * math.sqrt(chance * (1 - chance) / trials) + bias


def normal_items(generator: np.random.Generator) -> tuple[list[Values], Metric, float]:
    return of(generator.normal(2.0, 3.0, 80).tolist()), MEAN, 2.0


def right_or_wrong(generator: np.random.Generator) -> tuple[list[Values], Metric, float]:
    return of((generator.random(120) < 0.7).astype(float).tolist()), MEAN, 0.7


def skewed_ratios(generator: np.random.Generator) -> tuple[list[Values], Metric, float]:
    """Losses of rows of very different lengths, the longer ones with smaller losses."""
    lengths = np.ceil(generator.lognormal(2.0, 0.7, 120))
    sums = lengths * 0.5 + np.sqrt(lengths) * generator.gamma(4.0, 0.25, 120)
    true = skewed_ratio
    return [{"sum": float(a), "tokens": float(b)} for a, b in zip(sums, lengths, strict=True)], LOSS, true


def true_ratio() -> float:
    lengths = np.ceil(np.random.default_rng(99).lognormal(2.0, 0.7, 2_000_000))
    return float(0.5 + np.sqrt(lengths).mean() / lengths.mean())


skewed_ratio = true_ratio()


@pytest.mark.parametrize("simulated", [normal_items, right_or_wrong, skewed_ratios])
def test_intervals_hold_the_true_value_as_often_as_they_say(
    simulated: Callable[[np.random.Generator], tuple[list[Values], Metric, float]],
) -> None:
    trials, hits, above = 300, 0, 0
    for trial in range(trials):
        items, metric, true = simulated(np.random.default_rng(trial))
        sample = samples([metric], {"one": items}, config(seed=trial, num_resamples=250), task="t")
        found = interval(sample[metric.name]["one"], confidence=0.9)
        hits += found.low <= true <= found.high
        above += true > found.high
    assert within_binomial_error(hits, trials, 0.9)
    assert within_binomial_error(above, trials, 0.05, bias=0.015)  # as often on either side


def test_a_mean_has_the_interval_of_the_textbook() -> None:
    values = np.random.default_rng(0).normal(size=500)
    sample = means({"one": values.tolist()}, num_resamples=4000)["one"]
    error = values.std() / math.sqrt(len(values))
    found = interval(sample, confidence=0.95)
    assert sample.resampled.std() == pytest.approx(error, rel=0.04)
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_two_items_are_drawn_as_two_coins_fall() -> None:
    counts = np.concatenate(list(drawn(2, config(num_resamples=4000), task="t")))
    assert (counts.sum(axis=1) == 2).all()
    shares = [float((counts[:, 0] == number).mean()) for number in range(3)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_skewness_is_that_of_the_figure() -> None:
    """Of exponential values the mean may lie farther above than below what was found; symmetric intervals cannot."""
    values = np.random.default_rng(3).exponential(size=60)
    found = interval(means({"one": values.tolist()}, num_resamples=4000)["one"], confidence=0.95)
    assert found.high - found.value > 1.2 * (found.value - found.low)


def test_differences_are_of_the_same_draws() -> None:
    generator = np.random.default_rng(5)
    luck = generator.normal(0.0, 1.0, 200)
    better = luck + 0.1 + generator.normal(0.0, 0.05, 200)
    found = means({"full": better.tolist(), "narrow": luck.tolist()}, num_resamples=1000)
    between = difference(found["full"], found["narrow"], confidence=0.95)
    alone = [interval(found[name], confidence=0.95) for name in ("full", "narrow")]
    # Apart, the two are indistinguishable; on the same items, there is no doubt.
    assert alone[0].low < alone[1].high
    assert between.low > 0.08
    assert between.p == pytest.approx(1 / 1001)
    paired, unpaired = found["full"].minus(found["narrow"]).resampled, found["full"].resampled[::-1]
    assert paired.var() < 0.01 * (unpaired - found["narrow"].resampled).var()
    assert paired.std() == pytest.approx((better - luck).std() / math.sqrt(200), rel=0.1)


def test_a_sub_model_differs_from_itself_by_nothing() -> None:
    found = means({"a": [0.0, 1.0, 1.0, 0.3], "b": [0.0, 1.0, 1.0, 0.3]})
    between = difference(found["a"], found["b"], confidence=0.95)
    assert (between.value, between.p) == (0.0, 1.0)
    assert math.isnan(between.low)  # of values that nothing bounds
    assert math.isnan(between.high)


def test_p_is_that_of_the_textbook_and_agrees_with_the_interval() -> None:
    normal = NormalDist()
    for seed, shift in enumerate([0.0, 0.04, 0.07, 0.09, 0.11, -0.09]):
        values = np.random.default_rng(seed).normal(size=400)
        values += shift - values.mean()
        sample = means({"one": values.tolist()}, num_resamples=4000)["one"]
        z = abs(shift) * math.sqrt(400) / values.std()
        assert p_of_zero(sample) == pytest.approx(2 * normal.cdf(-z), abs=0.03)
        for confidence in (0.6, 0.9, 0.99):
            found = interval(sample, confidence=confidence)
            if abs(p_of_zero(sample) - (1 - confidence)) > 0.003:
                assert (found.low <= 0 <= found.high) == (p_of_zero(sample) > 1 - confidence)


def test_p_of_no_difference_is_as_often_small_as_it_says() -> None:
    small = 0
    for trial in range(300):
        generator = np.random.default_rng(1000 + trial)
        pair = generator.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], 80)
        found = means({"a": pair[:, 0].tolist(), "b": pair[:, 1].tolist()}, seed=trial, num_resamples=200)
        small += difference(found["a"], found["b"], confidence=0.9).p <= 0.1
    assert within_binomial_error(small, 300, 0.1)


def test_who_stands_beside_a_sub_model_and_how_many_draws_are_at_once_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(2)
    values = {name: generator.normal(size=50).tolist() for name in ("a", "b", "c")}
    together, alone = means(values)["b"], means({"b": values["b"]})["b"]
    assert np.array_equal(together.resampled, alone.resampled)
    assert np.array_equal(together.left_out, alone.left_out)
    monkeypatch.setattr("trainer.evaluation.statistics.COUNTS_BYTES", 7 * 8 * 50)
    assert np.allclose(means(values)["b"].resampled, together.resampled, rtol=1e-12)


def test_draws_hang_on_seed_and_task_alone() -> None:
    def first(seed: int, task: str) -> list[float]:
        return next(drawn(30, config(seed=seed), task=task))[0].tolist()

    assert first(0, "arc") == first(0, "arc")
    assert first(0, "arc") != first(1, "arc")
    assert first(0, "arc") != first(0, "piqa")


def test_a_band_is_the_interval_where_points_move_as_one() -> None:
    values = np.random.default_rng(4).normal(size=100)
    found = means({"a": values.tolist(), "b": (2 * values + 1).tolist()}, num_resamples=1000)
    for both, sample in zip(band(list(found.values()), confidence=0.95), found.values(), strict=True):
        alone = interval(sample, confidence=0.95)
        assert both.low == pytest.approx(alone.low, abs=0.01)
        assert both.high == pytest.approx(alone.high, abs=0.01)
    assert band([found["a"]], confidence=0.95) == [interval(found["a"], confidence=0.95)]


def test_a_band_holds_all_points_at_once_as_often_as_it_says() -> None:
    trials, at_once, each = 200, 0, 0
    true = np.linspace(0, 1, 6)
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        items = true + generator.normal(size=(100, 1)) + generator.normal(size=(100, 6))
        curve = list(means({str(i): items[:, i].tolist() for i in range(6)}, seed=trial, num_resamples=300).values())
        bands, alone = band(curve, confidence=0.9), [interval(sample, confidence=0.9) for sample in curve]
        assert all(wide.low <= own.low and own.high <= wide.high for wide, own in zip(bands, alone, strict=True))
        at_once += all(found.low <= value <= found.high for found, value in zip(bands, true, strict=True))
        each += all(found.low <= value <= found.high for found, value in zip(alone, true, strict=True))
    assert within_binomial_error(at_once, trials, 0.9, bias=0.02)
    assert each / trials < 0.8  # what pointwise intervals would come to


def test_a_band_of_points_that_have_no_luck_in_common_is_as_wide_as_they_are_many() -> None:
    """Of 16 independent points, each must hold with 0.95 ** (1 / 16): 2.95 deviations of a normal instead of 1.96."""
    generator = np.random.default_rng(8)
    found = list(means({str(i): generator.normal(size=300).tolist() for i in range(16)}, num_resamples=2000).values())
    widths = [wide.high - wide.low for wide in band(found, confidence=0.95)]
    alone = [own.high - own.low for own in (interval(sample, confidence=0.95) for sample in found)]
    assert sum(widths) / sum(alone) == pytest.approx(2.95 / 1.96, rel=0.05)


def test_a_band_has_no_limits_where_a_figure_has_none_and_is_elsewhere_as_without_it() -> None:
    found = means({"a": [1.0] * 30, "b": np.random.default_rng(0).random(30).tolist()})
    still, moving = band(list(found.values()), confidence=0.9)
    assert math.isnan(still.low)
    assert math.isnan(still.high)
    assert moving.low == pytest.approx(interval(found["b"], confidence=0.9).low, abs=0.01)


def test_all_metrics_are_of_the_same_draws() -> None:
    generator = np.random.default_rng(7)
    items = [{"sum": float(generator.gamma(9)), "tokens": float(generator.integers(3, 9))} for _ in range(40)]
    found = samples([LOSS, PERPLEXITY], {"a": items}, config(), task="t")
    assert np.array_equal(found["perplexity"]["a"].resampled, np.exp(found["loss"]["a"].resampled))
    assert found["loss"]["a"].value == LOSS.of(items)
    assert found["perplexity"]["a"].value == PERPLEXITY.of(items)
    without_first = LOSS.of(items[1:])
    assert found["loss"]["a"].left_out[0] == pytest.approx(without_first, rel=1e-12)


def test_what_has_no_figure_has_no_interval_and_harms_no_other() -> None:
    nothing = [{"sum": 0.0, "tokens": 0.0}] * 5
    some = [{"sum": 2.0, "tokens": 1.0}, {"sum": 4.0, "tokens": 4.0}, *nothing]
    found = samples([LOSS], {"a": [*nothing, *nothing[:2]], "b": some}, config(), task="t")["loss"]
    assert math.isnan(interval(found["a"], confidence=0.9).low)
    assert math.isnan(difference(found["a"], found["b"], confidence=0.9).p)
    without, beside = band([found["a"], found["b"]], confidence=0.9)
    assert math.isnan(without.high)
    assert (beside.low, beside.high) == pytest.approx((1.0, 2.0), abs=0.3)
    # Some draws have neither of the two items that count; of the others the figure lies between theirs.
    assert not np.isfinite(found["b"].resampled).all()
    within = interval(found["b"], confidence=0.9)
    assert 1.0 <= within.low < within.value < within.high <= 2.0


def test_items_that_are_not_the_same_are_refused() -> None:
    with pytest.raises(InputError, match=r"task 't': .* 'a' 2, 'b' 1"):
        means({"a": [0.0, 1.0], "b": [0.0]})
    with pytest.raises(InputError, match=r"task 't': .*at least one; found 'a' 0"):
        means({"a": []})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": 0.99, "num_resamples": 100}, "takes 200 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_say_nothing_are_refused(changes: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        StatisticsConfig(**changes)


def test_sixteen_sub_models_on_ten_thousand_items_fit_into_half_a_gigabyte() -> None:
    items = of(np.random.default_rng(0).random(10_000).tolist())
    found = {f"spec_{number}": items for number in range(16)}
    tracemalloc.start()
    try:
        made = samples([MEAN], found, config(num_resamples=2000), task="t")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(made["mean"]["spec_15"].resampled) == 2000
    assert most < 200 << 20
