# SPDX-License-Identifier: Apache-2.0
"""How sure figures are: items are drawn anew, with replacement, and the same draws serve every sub-model of a task.

A figure follows from sums over items (``trainer.evaluation.metric``), so drawing items anew is a product of counts
with what each item adds, whatever the metric. That draws are shared makes differences between sub-models paired: what
an item has of luck for both leaves their difference. Draws are a function of the seed and the task's name alone, and
what is found of one sub-model does not depend on who stands beside it.

Intervals are bias-corrected and accelerated (BCa): Efron, "Better bootstrap confidence intervals", JASA 82 (1987);
Efron and Tibshirani, "An introduction to the bootstrap" (1993), chapter 14. What no bootstrap can tell is what no
item shows: where all items are alike, as when every answer is right, drawing anew gives the same. Of such items the
limits are exact where each item's part in a mean is bounded, as in a share of right answers (``alike``), and of
other figures there are none.

Of many sub-models beside one, some differ by chance alone. Their p-values are adjusted for that (``adjusted``);
intervals are each for itself, and bands at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float64

from model.errors import ConfigError, InputError
from trainer.evaluation.metric import Metric, Values

COUNTS_BYTES = 64 << 20  # of drawn counts that are in memory at once
NORMAL = NormalDist()


@dataclass(kw_only=True, slots=True)
class StatisticsConfig:
    """How often items are drawn anew, and what intervals are to cover."""

    seed: int = 0
    num_resamples: int = 2000  # draws of all items; intervals want 1000 or more, bands over many sub-models some more
    confidence: float = 0.95  # how often an interval is to hold the true value

    def __post_init__(self) -> None:
        """Raise ConfigError where nothing could be said."""
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"statistics: confidence is {self.confidence}; it must be 0.5 or more and below 1")
        least = math.ceil(2 / (1 - self.confidence))
        if self.num_resamples < least:
            raise ConfigError(
                f"statistics: num_resamples is {self.num_resamples}; confidence {self.confidence} takes {least} or more"
            )
        if self.seed < 0:
            raise ConfigError(f"statistics: seed is {self.seed}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the limits of what it may be; nan where there is none.

    A value without limits is one of which all items are alike.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """What one sub-model has more than another on the same items.

    ``p`` is two-sided: the largest share of chance at which an interval of this kind would still hold zero, and never
    below one over the number of draws. Where several are compared (``differences``) it is adjusted for that. It is 1
    where no item differs, and nan where all differ by as much, if nothing bounds by how much others may.
    """

    p: float


@dataclass(frozen=True)
class Sample:
    """One figure of one sub-model, and what it would have been of other items."""

    value: float
    resampled: Float64[np.ndarray, " resamples"]  # in the order of the task's draws
    left_out: Float64[np.ndarray, " items"]  # without one item each; empty where there is one item alone
    num_items: int  # that add anything to it
    bounds: tuple[float, float] | None  # as of ``Metric``

    @cached_property
    def is_still(self) -> bool:
        """Whether no draw moves the figure: all items are alike."""
        finite = self.resampled[np.isfinite(self.resampled)]
        return len(finite) > 0 and bool(near(finite, self.value).all())

    def minus(self, other: Sample) -> Sample:
        """What this one has more on the same items; both are of one task and one seed."""
        bounds = None
        if self.bounds is not None and other.bounds is not None:
            bounds = (self.bounds[0] - other.bounds[1], self.bounds[1] - other.bounds[0])
        return Sample(
            self.value - other.value, self.resampled - other.resampled, self.left_out - other.left_out,
            min(self.num_items, other.num_items), bounds,
        )  # fmt: skip


def samples(
    metrics: Sequence[Metric], found: Mapping[str, Sequence[Values]], config: StatisticsConfig, *, task: str
) -> dict[str, dict[str, Sample]]:
    """Every metric of every sub-model on the task's items, as they are and as they are drawn anew.

    Memory is of the order of the tables (items × what they add × sub-models), besides counts of 64 MiB.

    Args:
        metrics: The task's.
        found: What was found, by the sub-model's name; of the same items in the same order.
        config: Draws.
        task: The name, from which draws follow.

    Returns:
        By the metric's name and the sub-model's.

    Raises:
        InputError: There is no item, or not as many for each sub-model.
    """
    lengths = {name: len(items) for name, items in found.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        told = ", ".join(f"'{name}' {length}" for name, length in lengths.items()) or "no sub-model"
        raise InputError(
            f"task '{task}': figures want the same items for each sub-model, at least one; found {told}; measure the"
            " task on all of them"
        )
    tables = {(metric.name, name): metric.table(items) for metric in metrics for name, items in found.items()}
    sums = {key: [np.empty((0, table.shape[1]))] for key, table in tables.items()}
    for counts in drawn(next(iter(lengths.values())), config, task=task):
        for key, table in tables.items():
            # Each product by itself: with more columns beside them, sums could be rounded otherwise.
            sums[key].append(counts @ table)
    return {
        metric.name: {
            name: sample_of(metric, tables[metric.name, name], np.concatenate(sums[metric.name, name]))
            for name in found
        } for metric in metrics
    }  # fmt: skip


def sample_of(
    metric: Metric, table: Float64[np.ndarray, "items parts"], resampled: Float64[np.ndarray, "resamples parts"]
) -> Sample:
    """The figures of what items add, and of the sums over drawn ones."""
    whole = table.sum(axis=0)
    with np.errstate(all="ignore"):  # a sum in a denominator may be zero without some items
        return Sample(
            value=float(metric.finish(whole)),
            resampled=np.asarray(metric.finish(resampled), dtype=np.float64),
            left_out=np.asarray(metric.finish(whole - table), dtype=np.float64)[: 0 if len(table) == 1 else None],
            num_items=int(np.count_nonzero(table.any(axis=1))),
            bounds=metric.bounds,
        )


def drawn(num_items: int, config: StatisticsConfig, *, task: str) -> Iterator[Float64[np.ndarray, "some items"]]:
    """How often each item is drawn, a row per draw of all, some rows at once."""
    digest = hashlib.sha256(f"resampling {config.seed} {task}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16])))
    at_once = max(1, min(config.num_resamples, COUNTS_BYTES // (8 * num_items)))
    for start in range(0, config.num_resamples, at_once):
        counts = np.empty((min(at_once, config.num_resamples - start), num_items))
        for row in counts:
            row[:] = np.bincount(generator.integers(0, num_items, num_items), minlength=num_items)
        yield counts


def interval(sample: Sample, *, confidence: float) -> Interval:
    """The BCa interval of a figure; where all items are alike, what ``alike`` says.

    Draws in which the figure does not exist, such as a ratio over nothing, are left out.
    """
    if sample.is_still:
        return alike(sample, confidence=confidence)
    low, high = limits(sample, np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    return Interval(value=sample.value, low=low, high=high)


def alike(sample: Sample, *, confidence: float) -> Interval:
    """The interval where all items are alike: exact, or none if nothing bounds what others may have.

    Of n items that are all alike, others are at most a share 1 - q of all there are, where q ** n is half of what
    confidence leaves: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934). Others may have whatever the bounds allow. Of right and wrong answers these are
    their limits for all or none.
    """
    if sample.bounds is None:
        return Interval(value=sample.value, low=math.nan, high=math.nan)
    others = 1 - ((1 - confidence) / 2) ** (1 / sample.num_items)
    least, most = sample.bounds
    return Interval(
        value=sample.value, low=sample.value - others * (sample.value - least),
        high=sample.value + others * (most - sample.value),
    )  # fmt: skip


def difference(one: Sample, other: Sample, *, confidence: float) -> Difference:
    """What ``one`` has more than ``other``, paired: both are of the same draws of the same items."""
    between = one.minus(other)
    found = interval(between, confidence=confidence)
    return Difference(value=found.value, low=found.low, high=found.high, p=p_of_zero(between))


def differences(found: Mapping[str, Sample], other: Sample, *, confidence: float) -> dict[str, Difference]:
    """What each of several has more than ``other``, by name, with p-values that are adjusted for their number."""
    between = [sample.minus(other) for sample in found.values()]
    intervals = [interval(sample, confidence=confidence) for sample in between]
    return {
        name: Difference(value=one.value, low=one.low, high=one.high, p=p)
        for name, one, p in zip(found, intervals, adjusted(between), strict=True)
    }


def adjusted(between: Sequence[Sample]) -> list[float]:
    """The p-values of several differences, adjusted for their number: family-wise.

    Who takes all that are at most 0.05 for real ones takes any for real that is none in about 0.05 of all cases, no
    matter how many there are. Source: step-down max-T of Westfall and Young, "Resampling-based multiple testing"
    (1993), chapter 2, by draws as in Romano and Wolf, "Exact and approximate stepdown methods for multiple hypothesis
    testing", JASA 100 (2005). Distances are in standard deviations of draws; a p-value is the share of draws in which
    any of the differences that are no farther from zero is as far from its value. Draws being shared, sub-models that
    are right and wrong together count for less than their number. None is below its own p-value.

    Where items are all alike there is no such distance: these p-values are multiplied by the number (Bonferroni), and
    the others take what of the chance is left to them.
    """
    own = [p_of_zero(sample) for sample in between]
    if len(between) < 2:
        return own
    number = sum(not math.isnan(p) for p in own)
    found = [p if math.isnan(p) else min(1.0, p * number) for p in own]
    moved: dict[int, Float64[np.ndarray, " resamples"]] = {}
    far: dict[int, float] = {}
    for place, sample in enumerate(between):
        if not (sample.is_still or math.isnan(own[place])):
            draws = np.where(np.isfinite(sample.resampled), sample.resampled, math.nan)
            spread = float(np.nanstd(draws))
            moved[place], far[place] = np.abs(draws - sample.value) / spread, abs(sample.value) / spread
    nearest_first = sorted(far, key=lambda place: far[place])
    shares: list[float] = []
    farthest = np.zeros(len(between[0].resampled))
    for place in nearest_first:
        farthest = np.fmax(farthest, moved[place])  # draws without the figure decide nothing
        as_far = np.count_nonzero(farthest >= far[place] * (1 - 1e-9))  # ties but for rounding
        shares.append(min(1.0, (as_far + 1) / (len(farthest) + 1) * number / len(far)))
    least = 0.0
    for place, share in zip(reversed(nearest_first), reversed(shares), strict=True):
        least = max(least, share)  # none is surer than one that is farther from zero
        found[place] = max(least, own[place])
    return found


def band(curve: Sequence[Sample], *, confidence: float) -> list[Interval]:
    """A simultaneous band: with this confidence, all points of the curve lie within it at once.

    Every point's own interval is stretched by one common factor, on each side of the value by itself: the factor that
    this share of the shared draws needs to lie within it at all points. Points that move together thus want less of
    it than others; a single one wants none. Limits are within bounds where the metric has them.
    Where items are all alike, the point's interval is of so much more confidence as there are points (Bonferroni), and
    the others take what of the chance is left to them.

    The points are taken as given: that a frontier was chosen by the same figures makes its points look better than
    they are, and no band tells.
    """
    alone = [interval(sample, confidence=confidence) for sample in curve]
    if len(curve) == 1:
        return alone
    farthest = np.zeros(len(curve[0].resampled))
    for sample, own in zip(curve, alone, strict=True):
        moved = sample.resampled - sample.value
        for limit, side in ((own.high, 1), (own.low, -1)):
            room = side * (limit - own.value)
            if room > 0:  # else the limit is the value itself, or beyond it: it has nothing to be stretched
                farthest = np.fmax(farthest, side * moved / room)  # draws without the figure decide nothing
    moving = sum(not sample.is_still for sample in curve)
    limited = moving + sum(sample.is_still and sample.bounds is not None for sample in curve)
    surer, left = (1 - (1 - confidence) * part / max(limited, 1) for part in (1, moving))
    factor = max(1.0, float(np.quantile(farthest, left, method="higher")))
    found: list[Interval] = []
    for sample, own in zip(curve, alone, strict=True):
        if sample.is_still:
            found.append(alike(sample, confidence=surer))
            continue
        least, most = sample.bounds or (-math.inf, math.inf)
        low = min(own.low, max(least, own.value - factor * (own.value - own.low)))
        high = max(own.high, min(most, own.value + factor * (own.high - own.value)))
        found.append(Interval(value=own.value, low=low, high=high))
    return found


def limits(sample: Sample, shares: Float64[np.ndarray, " limits"]) -> list[float]:
    """The values below which the true one lies with these chances, by BCa; nan where the figure has none."""
    values = sample.resampled[np.isfinite(sample.resampled)]
    if not len(values) or not math.isfinite(sample.value):
        return [math.nan] * len(shares)
    bias, acceleration = bias_of(values, sample.value), acceleration_of(sample.left_out)
    corrected = []
    for share in shares:
        along = bias + NORMAL.inv_cdf(float(share))
        squeezed = 1 - acceleration * along
        # Beyond its pole the correction means nothing; what lies there is farther out than all draws.
        corrected.append(NORMAL.cdf(bias + along / squeezed) if squeezed > 0 else float(along > 0))
    return [float(limit) for limit in np.quantile(values, corrected)]


def bias_of(values: Float64[np.ndarray, " resamples"], value: float) -> float:
    """How far the figure is from the middle of its draws, in standard deviations of a normal; ties count half."""
    return NORMAL.inv_cdf(share_below(values, value))


def share_below(values: Float64[np.ndarray, " resamples"], value: float, *, ties: float = 0.5) -> float:
    """The share of draws below a value, of those at it this part, and never none or all."""
    at_it = near(values, value)
    below = np.count_nonzero((values < value) & ~at_it) + ties * np.count_nonzero(at_it)
    return (below + 0.5) / (len(values) + 1)


def near(values: Float64[np.ndarray, " resamples"], value: float) -> Bool[np.ndarray, " resamples"]:
    """Which values are this one, but for rounding of sums in another order."""
    return np.isclose(values, value, rtol=1e-12, atol=1e-300)


def acceleration_of(left_out: Float64[np.ndarray, " items"]) -> float:
    """How the figure's spread changes with its value: from its skewness when items are left out in turn."""
    left_out = left_out[np.isfinite(left_out)]
    if not len(left_out):
        return 0.0
    deviations = left_out.mean() - left_out
    squares = float((deviations**2).sum())
    if squares <= 1e-24 * max(1.0, float((left_out**2).sum())):
        return 0.0  # all alike but for rounding
    return float((deviations**3).sum()) / (6 * squares**1.5)


def p_of_zero(sample: Sample) -> float:
    """Two-sided: twice the chance at which a BCa limit lies at zero, or one of those of ``alike``."""
    if sample.is_still:
        return p_of_alike(sample)
    values = sample.resampled[np.isfinite(sample.resampled)]
    if not len(values) or not math.isfinite(sample.value):
        return math.nan
    bias, acceleration = bias_of(values, sample.value), acceleration_of(sample.left_out)
    # The share of draws beyond zero is the limit's after correction; this undoes the correction. Those at zero, of
    # which a difference of few right answers has many, count as beyond: an interval that ends at zero holds it.
    ties = 0.5 + 0.5 * float(np.sign(sample.value))
    beyond = NORMAL.inv_cdf(share_below(values, 0.0, ties=ties)) - bias
    squeezed = 1 + acceleration * beyond
    least = 1 / (len(values) + 1)
    if squeezed <= 0:
        return least
    share = NORMAL.cdf(beyond / squeezed - bias)
    return min(1.0, max(least, 2 * min(share, 1 - share)))


def p_of_alike(sample: Sample) -> float:
    """As ``p_of_zero``, where all items are alike: twice the chance of that where the truth is zero, at most."""
    if sample.value == 0:
        return 1.0
    if sample.bounds is None:
        return math.nan
    # The more items are like those seen, the farther must the others be on the other side, and bounds end that.
    beyond = max(0.0, sample.bounds[1] if sample.value < 0 else -sample.bounds[0])
    return min(1.0, 2 * (beyond / (abs(sample.value) + beyond)) ** sample.num_items)
