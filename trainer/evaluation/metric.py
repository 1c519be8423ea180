# SPDX-License-Identifier: Apache-2.0
"""Figures of a task: each is a function of sums over its items, so that any of them can be resampled alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

Values = Mapping[str, Any]  # what was found of one item under one sub-model, as JSON values


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a figure follows from what was found of the items.

    Args:
        name: As in ``loss``, ``accuracy``, ``wer``.
        unit: For axes and tables, as in "nats per token".
        higher_is_better: Which way is up.
        parts: What one item adds to the sums; the same number of them for every item.
        finish: Sums over items, parts last, to the figure; any leading axes, such as one of resamplings.
        bounds: What an item has lies between these, if the figure is the mean of what items have; None where it is no
            mean, or where nothing bounds it.
    """

    name: str
    unit: str
    higher_is_better: bool
    parts: Callable[[Values], tuple[float, ...]]
    finish: Callable[[Float64[np.ndarray, "*axes parts"]], Float64[np.ndarray, "*axes"]]
    bounds: tuple[float, float] | None = None

    def table(self, items: Iterable[Values]) -> Float64[np.ndarray, "items parts"]:
        """What each item adds, a row per item."""
        return np.array([self.parts(values) for values in items], dtype=np.float64)

    def of(self, items: Iterable[Values]) -> float:
        """The figure of these items, of which there is at least one."""
        return float(self.finish(self.table(items).sum(axis=0)))


def ratio(sums: Float64[np.ndarray, "*axes parts"]) -> Float64[np.ndarray, "*axes"]:
    """The first sum over the second: what most figures are finished by."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def share(name: str, unit: str, of: Callable[[Values], float]) -> Metric:
    """The mean of something from 0 to 1 that items have, such as whether they are right; more of it is better."""
    return Metric(
        name=name, unit=unit, higher_is_better=True, parts=lambda values: (float(of(values)), 1.0), finish=ratio,
        bounds=(0.0, 1.0),
    )  # fmt: skip
