# SPDX-License-Identifier: Apache-2.0
"""The rows of a sweep, gathered by sub-model and task: what page, picture and tables are made of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from model.config import TextConfig
from model.errors import InputError
from model.slicing.spec import SliceSpec
from trainer.evaluation.statistics import Difference
from trainer.sweep.row import Figure, Row, check_beside
from trainer.sweep.run import Comparison

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SHORT_SCALE = {"T": "trillions", "G": "billions", "M": "millions", "k": "thousands", "": ""}
SHARE = "share of "  # such figures are shown as percentages
MAX_DIGITS = 4


class Cost(StrEnum):
    """What a sub-model costs: the horizontal axes. Members are named as the fields of a row."""

    effective_parameters = "effective_parameters"
    parameters = "parameters"
    weight_bytes = "weight_bytes"
    kv_bytes_per_token = "kv_bytes_per_token"
    flops_per_token = "flops_per_token"

    @property
    def heading(self) -> str:
        """For people."""
        return {
            "effective_parameters": "Effective parameters",
            "parameters": "All parameters",
            "weight_bytes": "Weights",
            "kv_bytes_per_token": "Keys and values",
            "flops_per_token": "Work",
        }[self]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a quantity is shown: its raw value times ``factor``, with so many digits after the point."""

    title: str
    unit: str
    factor: float
    digits: int

    @property
    def label(self) -> str:
        """Of an axis or a column."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """A raw value as shown, without its unit; a dash for one that is not there."""
        if value is None or not math.isfinite(value):
            return "–"
        shown = f"{value * self.factor:{'+' if signed else ''},.{self.digits}f}"
        return shown.replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything there is to show.

    Args:
        rows: At most one for each sub-model and task.
        config: The parent's.
        comparisons: Of sub-models with the parent, by task, as far as there are any.
    """

    rows: Sequence[Row]
    config: TextConfig
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be shown side by side."""
        if not self.rows:
            raise InputError("a report of no rows; finish at least one task of the sweep")
        seen: dict[tuple[str, ...], tuple[str, Row]] = {}
        for number, row in enumerate(self.rows, start=1):
            row.spec.check(self.config)
            if not row.metrics:
                raise InputError(f"slice '{row.spec.name}', task '{row.task}': no figures; leave the row out")
            check_beside(row, f"row {number}", seen)

    @cached_property
    def tasks(self) -> list[str]:
        """Names, in the order of the rows."""
        return list(dict.fromkeys(row.task for row in self.rows))

    @cached_property
    def subs(self) -> list[Row]:
        """One row of each sub-model, for what does not depend on tasks; the largest first."""
        first = {row.spec.name: row for row in reversed(self.rows)}
        return sorted(first.values(), key=lambda row: (-row.effective_parameters, -row.parameters, row.spec.name))

    @cached_property
    def found(self) -> dict[tuple[str, str], Row]:
        """Rows by the names of sub-model and task."""
        return {row.key: row for row in self.rows}

    def change(self, spec: str, task: str, metric: str) -> Difference | None:
        """What a sub-model has more than the parent on the same items, if it was compared and both are numbers."""
        comparison = self.comparisons.get(task)
        found = comparison.differences.get(metric, {}).get(spec) if comparison else None
        return found if found and math.isfinite(found.value) else None

    def has_changes(self, task: str, metric: str) -> bool:
        """Whether anything was compared with the parent."""
        return any(self.change(row.spec.name, task, metric) for row in self.subs)

    def band(self, spec: str, task: str, metric: str) -> tuple[float, float]:
        """The limits of the band around the frontier at a sub-model: of all at once if that is known, else its own.

        Where there are none, both are nan.
        """
        comparison = self.comparisons.get(task)
        found = comparison.bands.get(metric, {}).get(spec) if comparison else None
        found = found or self.figure(spec, task, metric)
        return (found.low, found.high) if found else (math.nan, math.nan)

    def span(self, spec: str, task: str, metric: str, *, band: bool = False) -> tuple[float, float, float]:
        """Low end, value and high end of a figure that is there, or of the band, as they are shown; an end that is not
        there is the value.
        """
        figure, factor = self.found[spec, task].metrics[metric], self.scale_of(task, metric).factor
        low, high = self.band(spec, task, metric) if band else (figure.low, figure.high)
        ends = (
            low if math.isfinite(low) else figure.value,
            figure.value,
            high if math.isfinite(high) else figure.value,
        )
        return ends[0] * factor, ends[1] * factor, ends[2] * factor

    @property
    def band_words(self) -> str:
        """What the band is."""
        share = f"{100 * self.rows[0].confidence:.4g} %"
        every = all(task in self.comparisons for task in self.tasks)
        return f"{share} confidence at all points at once" if every else f"{share} confidence at each point by itself"

    def is_parent(self, spec: SliceSpec) -> bool:
        """Whether a sub-model is the whole parent."""
        return spec.is_full(self.config)

    def metrics(self, task: str) -> list[str]:
        """Names of a task's figures, the main one first."""
        return list(dict.fromkeys(name for row in self.rows if row.task == task for name in row.metrics))

    def figure(self, spec: str, task: str, metric: str) -> Figure | None:
        """What was found, if it was and is a number."""
        row = self.found.get((spec, task))
        figure = row.metrics.get(metric) if row else None
        return figure if figure and math.isfinite(figure.value) else None

    def figures(self, task: str, metric: str) -> dict[str, Figure]:
        """What was found, by the names of sub-models, in the order of ``subs``."""
        found = {row.spec.name: self.figure(row.spec.name, task, metric) for row in self.subs}
        return {name: figure for name, figure in found.items() if figure}

    def scale_of(self, task: str, metric: str) -> Scale:
        """How a figure is shown: with as many digits as its intervals bear, or those of differences."""
        if (task, metric) not in self.scales:
            self.scales[task, metric] = self.new_scale(task, metric)
        return self.scales[task, metric]

    @cached_property
    def scales(self) -> dict[tuple[str, str], Scale]:
        """Those that were asked for."""
        return {}

    def new_scale(self, task: str, metric: str) -> Scale:
        """What ``scale_of`` gives."""
        figures = list(self.figures(task, metric).values())
        unit, factor = (figures[0].unit if figures else ""), 1.0
        if unit.startswith(SHARE):
            unit, factor = f"% of {unit.removeprefix(SHARE)}", 100.0
        changes = [self.change(row.spec.name, task, metric) for row in self.subs]
        digits = [
            1 - math.floor(math.log10(statistics.median(halves)))
            for several in (figures, changes)
            if (halves := [factor * half for one in several if one and (half := (one.high - one.low) / 2) > 0])
        ]
        return Scale(
            title=metric.replace("_", " "),
            unit=unit,
            factor=factor,
            digits=min(max([0, *digits] if digits else [3]), MAX_DIGITS),
        )

    def scale_of_cost(self, cost: Cost) -> Scale:
        """How a cost is shown: in thousands, millions or billions, whichever fits the largest."""
        largest = max(getattr(row, cost) for row in self.subs)
        size, prefix = next((pair for pair in PREFIXES if largest >= pair[0]), PREFIXES[-1])
        unit = {
            Cost.weight_bytes: f"{prefix}B",
            Cost.kv_bytes_per_token: f"{prefix}B per token",
            Cost.flops_per_token: f"{prefix}FLOPs per token",
        }.get(cost, SHORT_SCALE[prefix])
        digits = 0 if size == 1 else max(0, 2 - math.floor(math.log10(max(largest / size, 1))))
        return Scale(title=cost.heading, unit=unit, factor=1 / size, digits=digits)

    def frontier(self, task: str, metric: str, cost: Cost) -> list[str]:
        """Names of the sub-models that no other beats at its cost, the cheapest first."""
        figures = self.figures(task, metric)
        sign = {True: 1.0, False: -1.0}
        points = [
            (float(getattr(row, cost)), sign[figure.higher_is_better] * figure.value, row.spec.name)
            for row in self.subs
            if (figure := figures.get(row.spec.name))
        ]
        return pareto(points)


def pareto(points: Iterable[tuple[float, float, str]]) -> list[str]:
    """Names of the points (cost, merit, name) that no other beats: none has more merit at no more cost, or less
    cost at no less merit. Points that are alike are all in it.
    """
    ordered = sorted(points, key=lambda point: (point[0], -point[1]))
    names: list[str] = []
    best, at = -math.inf, -math.inf
    for cost, merit, name in ordered:
        if merit > best or (merit == best and cost == at):
            best, at = merit, cost
            names.append(name)
    return names


def short(official: str) -> str:
    """A name of Google's table, short enough for a plot: ``Config for E2.54B (layer-level)`` is E2.54B layer."""
    words = official.removeprefix("Config for ").replace("official ", "").removesuffix(" Model")
    return words.replace("(", "").replace("-level)", "").replace(")", "")
