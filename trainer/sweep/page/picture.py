# SPDX-License-Identifier: Apache-2.0
"""``frontier.png``: a panel per task, its main figure against effective parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from trainer.sweep.page.facts import Cost, Facts, short

PICTURE_FILE = "frontier.png"
BLUE, ORANGE, GREY, INK = "#0067a6", "#b04a00", "#6d7781", "#1b2026"  # as in the page's style sheet
PANEL_INCHES = (6.0, 4.2)
PANELS_ABREAST = 3
DPI = 150
ROOM = 8  # pixels around a point that no name covers
AROUND = ((-5, 4), (0, 6), (5, -4), (0, -6), (5, 4), (-5, -4))  # points to the right and up


def draw_frontiers(facts: Facts, path: Path) -> None:
    """Write the picture. Text of users is drawn as it is, never as formulas."""
    number = len(facts.tasks)
    abreast = min(number, PANELS_ABREAST)
    rows = math.ceil(number / abreast)
    width, height = PANEL_INCHES
    figure = Canvas(figsize=(width * abreast, height * rows + 0.35), layout="constrained")  # not pyplot: no display
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, abreast, squeeze=False).flatten()
    for axes, task in zip(panels, facts.tasks, strict=False):
        draw_task(facts, axes, task)
    for axes in panels[number:]:
        axes.set_axis_off()
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.set_dpi(DPI)
    figure.draw_without_rendering()  # places are known from here on
    figure.set_layout_engine("none")  # nor are they sought again
    for axes, task in zip(panels, facts.tasks, strict=False):
        name_points(facts, axes, task)
    figure.savefig(path, dpi=DPI)


def draw_task(facts: Facts, axes: Axes, task: str) -> None:
    """One panel: all sub-models, the frontier, and its band."""
    metric = facts.metrics(task)[0]
    figures = facts.figures(task, metric)
    x_scale, y_scale = facts.scale_of_cost(Cost.effective_parameters), facts.scale_of(task, metric)
    axes.set_title(task, fontsize=11, parse_math=False)
    axes.set_xlabel(x_scale.label)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not figures:
        return
    better = "higher" if next(iter(figures.values())).higher_is_better else "lower"
    axes.set_ylabel(f"{y_scale.label}, {better} is better", parse_math=False)
    sizes = {row.spec.name: row.effective_parameters * x_scale.factor for row in facts.subs}
    spans = {name: facts.span(name, task, metric) for name in figures}
    front = facts.frontier(task, metric, Cost.effective_parameters)
    room = (max(sizes.values()) - min(sizes.values()) or max(sizes.values())) * 0.06
    axes.set_xlim(min(sizes.values()) - room, max(sizes.values()) + room)
    along = [*(sizes[name] for name in front), max(sizes.values()) + room]
    bands = [facts.span(name, task, metric, band=True) for name in [*front, front[-1]]]
    lows, values, highs = zip(*bands, strict=True)
    axes.fill_between(
        along, lows, highs, step="post", color=BLUE, alpha=0.14, linewidth=0,
        label=facts.band_words,
    )  # fmt: skip
    axes.step(along, values, where="post", color=BLUE, linewidth=1.5, label="frontier")
    for look, names in looks(facts, spans.keys(), front).items():
        draw_points(axes, look, [(sizes[name], *spans[name]) for name in names])


@dataclass(frozen=True)
class Look:
    """How points of a kind are drawn."""

    marker: str
    color: str
    filled: bool
    label: str


def looks(facts: Facts, names: Iterable[str], front: Sequence[str]) -> dict[Look, list[str]]:
    """Names of sub-models by how they are drawn: hollow where another beats them."""
    rows = {row.spec.name: row for row in facts.subs}
    found: dict[Look, list[str]] = {}
    for name in names:
        row, filled = rows[name], name in front
        marker, color, label = (
            ("s", INK, "parent") if facts.is_parent(row.spec) else ("D", ORANGE, "Google’s table") if row.official
            else ("o", BLUE if filled else GREY, "other sub-models")
        )  # fmt: skip
        found.setdefault(Look(marker, color, filled, label if filled else "beaten by another"), []).append(name)
    return found


def draw_points(axes: Axes, look: Look, points: Sequence[tuple[float, float, float, float]]) -> None:
    """Points of a kind: cost, low end, value, high end."""
    costs, lows, values, highs = zip(*points, strict=True)
    axes.vlines(costs, lows, highs, color=look.color, linewidth=0.8)
    axes.plot(
        costs, values, marker=look.marker, color=look.color, markerfacecolor=look.color if look.filled else "w",
        markersize=5, linestyle="none", label=look.label,
    )  # fmt: skip


def name_points(facts: Facts, axes: Axes, task: str) -> None:
    """Name the points of Google's table, those on the frontier first, wherever a name covers nothing else."""
    metric = facts.metrics(task)[0]
    figures = facts.figures(task, metric)
    x_scale, y_scale = facts.scale_of_cost(Cost.effective_parameters), facts.scale_of(task, metric)
    front = facts.frontier(task, metric, Cost.effective_parameters)
    places = {
        row.spec.name: (row.effective_parameters * x_scale.factor, figures[row.spec.name].value * y_scale.factor)
        for row in facts.subs if row.spec.name in figures
    }  # fmt: skip
    dots = [axes.transData.transform(place) for place in places.values()]
    taken = [Bbox.from_extents(x - ROOM, y - ROOM, x + ROOM, y + ROOM) for x, y in dots]
    named = [row for row in facts.subs if row.official and row.spec.name in places]
    for row in sorted(named, key=lambda row: row.spec.name not in front):
        for right, up in AROUND:
            label = axes.annotate(
                short(row.official or ""), places[row.spec.name], xytext=(right, up), textcoords="offset points",
                fontsize=7, color=ORANGE, ha={-1: "right", 0: "center", 1: "left"}[(right > 0) - (right < 0)],
                va="bottom" if up > 0 else "top", parse_math=False,
                path_effects=[withStroke(linewidth=2, foreground="w")],
            )  # fmt: skip
            label.set_in_layout(False)
            extent = label.get_window_extent()
            inside = axes.bbox.containsx(extent.x0) and axes.bbox.containsx(extent.x1)
            inside = inside and axes.bbox.containsy(extent.y0) and axes.bbox.containsy(extent.y1)
            if inside and not extent.count_overlaps(taken):
                taken.append(extent)
                break
            label.remove()
