# SPDX-License-Identifier: Apache-2.0
"""The page's table: a row per sub-model, columns for its sizes and for each task's figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.sweep.page.facts import Cost, Facts, Scale
from trainer.sweep.row import Row, told_alike

WHISKER = (96.0, 10.0)  # width and height of the picture of an interval, in pixels
SECONDS = Scale(title="Time", unit="seconds", factor=1, digits=1)
MEMORY = Scale(title="Peak memory", unit="MB", factor=1e-6, digits=0)
MMLU = Scale(title="MMLU", unit="%", factor=100, digits=2)


@dataclass(frozen=True, kw_only=True)
class Whisker:
    """The picture of an interval around a difference: places along its width."""

    zero: float
    low: float
    at: float
    high: float
    clear: bool  # p is so small that chance is no explanation, of however many compared


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in one place of the table."""

    text: str
    value: float | None  # what is sorted by
    small: str = ""
    whisker: Whisker | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of all sub-models.

    Args:
        title: What it holds.
        unit: Of what; empty if it has none.
        cells: In the order of the sub-models.
        task: Place of the task that it belongs to; None for sizes.
        extra: Whether it is shown only when its task is looked at alone.
        opens: Whether it is the first of its group.
    """

    title: str
    unit: str
    cells: list[Cell]
    task: int | None = None
    extra: bool = False
    opens: bool = False


def columns(facts: Facts) -> list[Column]:
    """All columns but the first, which holds the names."""
    main, *others = Cost
    found = [layers_column(facts), cost_column(facts, main)]
    for index, task in enumerate(facts.tasks):
        found += task_columns(facts, index, task)
    found += [cost_column(facts, cost, opens=place == 0) for place, cost in enumerate(others)]
    if any(row.mmlu is not None for row in facts.subs):
        cells = [Cell(text=MMLU.text(row.mmlu), value=row.mmlu) for row in facts.subs]
        found.append(Column(title="MMLU as published", unit="%", cells=cells))
    return found


def layers_column(facts: Facts) -> Column:
    """How many layers are kept."""
    numbers = [len(row.spec.kept_layers) for row in facts.subs]
    cells = [Cell(text=str(number), value=number) for number in numbers]
    return Column(title="Layers", unit="kept", cells=cells, opens=True)


def cost_column(facts: Facts, cost: Cost, *, opens: bool = False) -> Column:
    """One of the sizes."""
    shown = facts.scale_of_cost(cost)
    values = [getattr(row, cost) for row in facts.subs]
    cells = [Cell(text=shown.text(value), value=value) for value in values]
    return Column(title=shown.title, unit=shown.unit, cells=cells, opens=opens)


def task_columns(facts: Facts, index: int, task: str) -> Iterator[Column]:
    """A task's figures and what became of the parent's; then what measuring took."""
    for place, metric in enumerate(facts.metrics(task)):
        shown, extra = facts.scale_of(task, metric), place > 0
        cells = [figure_cell(facts, row, task, metric, shown) for row in facts.subs]
        yield Column(title=shown.title, unit=shown.unit, cells=cells, task=index, extra=extra, opens=place == 0)
        if facts.has_changes(task, metric):
            unit = shown.unit.replace("% of", "points of") if shown.unit.startswith("%") else shown.unit
            yield Column(
                title=f"Δ {shown.title}",
                unit=unit,
                cells=change_cells(facts, task, metric, shown),
                task=index,
                extra=extra,
            )
            yield Column(title="p", unit="adjusted", cells=p_cells(facts, task, metric), task=index, extra=True)
    rows = [facts.found.get((row.spec.name, task)) for row in facts.subs]
    for shown, name in ((SECONDS, "seconds"), (MEMORY, "peak_memory_bytes")):
        values = [getattr(row, name) if row else None for row in rows]
        cells = [Cell(text=shown.text(value), value=value) for value in values]
        yield Column(title=shown.title, unit=shown.unit, cells=cells, task=index, extra=True)


def figure_cell(facts: Facts, row: Row, task: str, metric: str, shown: Scale) -> Cell:
    """A figure with its interval."""
    figure = facts.figure(row.spec.name, task, metric)
    if not figure:
        return Cell(text="–", value=None)
    small = span(shown, figure.low, figure.high) or told_alike(facts.found[row.spec.name, task].num_items)
    return Cell(text=shown.text(figure.value), value=figure.value, small=small)


def change_cells(facts: Facts, task: str, metric: str, shown: Scale) -> list[Cell]:
    """Differences from the parent, drawn to one scale."""
    found = [facts.change(row.spec.name, task, metric) for row in facts.subs]
    ends = [end for change in found if change for end in (change.low, change.high, 0.0) if math.isfinite(end)]
    low, high = min(ends), max(ends)
    width = WHISKER[0] - 10

    def along(value: float) -> float:
        return round(5 + (width * (value - low) / (high - low) if high > low else width / 2), 1)

    cells: list[Cell] = []
    for row, change in zip(facts.subs, found, strict=True):
        if change is None:
            cells.append(Cell(text="–", value=None))
            continue
        whisker = None
        if all(math.isfinite(end) for end in (change.low, change.value, change.high)) and change.low < change.high:
            ends = (along(0), along(change.low), along(change.value), along(change.high))
            clear = bool(change.p <= 1 - facts.rows[0].confidence)
            whisker = Whisker(zero=ends[0], low=ends[1], at=ends[2], high=ends[3], clear=clear)
        none = "no item differs" if change.value == 0 else told_alike(facts.found[row.spec.name, task].num_items)
        small = span(shown, change.low, change.high, signed=True) or none
        text = shown.text(change.value, signed=True)
        cells.append(Cell(text=text, value=change.value, small=small, whisker=whisker))
    return cells


def p_cells(facts: Facts, task: str, metric: str) -> list[Cell]:
    """How likely chance is to make such differences, all those of the task in this figure together."""
    found = [facts.change(row.spec.name, task, metric) for row in facts.subs]
    ps = [None if change is None or math.isnan(change.p) else change.p for change in found]
    return [Cell(text=p_text(p), value=p) for p in ps]


def p_text(p: float | None) -> str:
    """A p-value for people."""
    if p is None:
        return "–"
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def span(shown: Scale, low: float, high: float, *, signed: bool = False) -> str:
    """An interval, or nothing where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{shown.text(low, signed=signed)} to {shown.text(high, signed=signed)}"
