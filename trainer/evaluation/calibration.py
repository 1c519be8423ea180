# SPDX-License-Identifier: Apache-2.0
"""Whether a model is as often right as it says: the expected calibration error, over bins of confidence.

Source: Guo et al. 2017, arXiv 1706.04599; each bin is as wide as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float64

from trainer.evaluation.engine import NUM_BINS
from trainer.evaluation.metric import Metric, Values

Bins = Iterable[Iterable[float]]  # of each bin: how many, the sum of their top probabilities, how many were right


def bins_of_one(probability: float, *, right: bool) -> list[list[float]]:
    """The bins of one guess that was held to be this likely."""
    bins = [[0.0, 0.0, 0.0] for _ in range(NUM_BINS)]
    bins[min(int(probability * NUM_BINS), NUM_BINS - 1)] = [1.0, probability, float(right)]
    return bins


def calibration_error(name: str, unit: str, bins: Callable[[Values], Bins]) -> Metric:
    """The metric, of items with these bins."""
    return Metric(
        name=name, unit=unit, higher_is_better=False,
        parts=lambda values: tuple(float(part) for one in bins(values) for part in one), finish=gap,
    )  # fmt: skip


def gap(sums: Float64[np.ndarray, "*axes parts"]) -> Float64[np.ndarray, "*axes"]:
    """The mean distance of confidence and share of right ones, each bin by how many are in it."""
    bins = sums.reshape(*sums.shape[:-1], NUM_BINS, 3)
    # By how many: |right / n - confidence / n| n / all = |right - confidence| / all; an empty bin adds nothing.
    return np.asarray(np.abs(bins[..., 2] - bins[..., 1]).sum(axis=-1) / bins[..., 0].sum(axis=-1))
