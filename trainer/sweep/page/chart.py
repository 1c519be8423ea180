# SPDX-License-Identifier: Apache-2.0
"""A task's plot as it stands in the page before any program runs: places of ticks, points, steps and band."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.sweep.page.facts import Cost, Facts, short

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 50
STEPS = (1, 2, 2.5, 5, 10)  # of ticks, times powers of ten
NAME = (92, 15)  # width and height that a name takes
PADDING = 0.06  # of the range, on either side


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A line of the grid and what it says."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A sub-model in the plot."""

    x: float
    y: float
    low: float
    high: float
    name: str  # with what was found, for whoever does not see the plot
    label: str  # beside the point; empty for most
    kinds: str  # front, official, parent: as in the style sheet
    shape: str  # circle, diamond, square


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Everything to draw."""

    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]
    steps: str
    band: str


def ticks(low: float, high: float, number: int) -> list[float]:
    """Round values between ``low`` and ``high``, about ``number`` of them."""
    rough = (high - low) / max(number, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in STEPS if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: that of the values and some room."""
    low, high = min(values), max(values)
    room = (high - low) * PADDING or abs(high) * PADDING or 1.0
    return low - room, high + room


def chart(facts: Facts, task: str, metric: str, cost: Cost) -> Chart | None:
    """The plot of a figure against a cost; None if there is nothing to draw."""
    figures = facts.figures(task, metric)
    if not figures:
        return None
    x_scale, y_scale = facts.scale_of_cost(cost), facts.scale_of(task, metric)
    costs = {row.spec.name: getattr(row, cost) * x_scale.factor for row in facts.subs}
    spans = {name: facts.span(name, task, metric) for name in figures}
    bands = {name: facts.span(name, task, metric, band=True)[::2] for name in figures}
    x_low, x_high = limits([costs[name] for name in figures])
    y_low, y_high = limits([end for ends in (*spans.values(), *bands.values()) for end in ends])

    def x(value: float) -> float:
        return round(LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    front = facts.frontier(task, metric, cost)
    points: list[Point] = []
    named: list[tuple[float, float]] = []
    for row in facts.subs:
        name = row.spec.name
        if name not in figures:
            continue
        low, value, high = spans[name]
        kinds = {"front": name in front, "official": row.official, "parent": facts.is_parent(row.spec)}
        told = f"{name}: {y_scale.text(figures[name].value)} {y_scale.unit} at {x_scale.text(getattr(row, cost))}"
        label = short(row.official) if row.official and name in front else ""
        points.append(Point(
            x=x(costs[name]), y=y(value), low=y(low), high=y(high), name=f"{told} {x_scale.unit}",
            label=label if label and free(x(costs[name]), y(value), named) else "",
            kinds=" ".join(kind for kind, holds in kinds.items() if holds),
            shape="square" if kinds["parent"] else "diamond" if kinds["official"] else "circle",
        ))  # fmt: skip
    better = "higher" if next(iter(figures.values())).higher_is_better else "lower"
    tops = [(x(costs[name]), y(spans[name][1]), *(y(end) for end in bands[name])) for name in front]
    return Chart(
        x_label=x_scale.label,
        y_label=f"{y_scale.label}, {better} is better",
        x_ticks=marks(ticks(x_low, x_high, 6), x),
        y_ticks=marks(ticks(y_low, y_high, 6), y),
        points=points,
        steps=stairs([(at, value) for at, value, _, _ in tops]),
        band=closed([(at, low) for at, _, low, _ in tops], [(at, high) for at, _, _, high in tops]),
    )


def free(x: float, y: float, named: list[tuple[float, float]]) -> bool:
    """Whether a name here would lie on none of those before; it is one of them from now on if so."""
    if any(abs(x - other_x) < NAME[0] and abs(y - other_y) < NAME[1] for other_x, other_y in named):
        return False
    named.append((x, y))
    return True


def marks(values: Sequence[float], place: Callable[[float], float]) -> list[Tick]:
    """Ticks with as many digits as tell them apart."""
    step = values[1] - values[0] if len(values) > 1 else 1.0
    digits = max(0, next(d for d in range(13) if abs(round(step, d) - step) < step * 1e-6))
    return [Tick(at=place(value), text=f"{value:,.{digits}f}".replace("-", "−")) for value in values]


def corners(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of stairs that hold each height until the next point, the last one up to the plot's edge."""
    path: list[tuple[float, float]] = []
    for at, height in points:
        if path:
            path.append((at, path[-1][1]))
        path.append((at, height))
    return [*path, (float(WIDTH - RIGHT), path[-1][1])]


def stairs(points: Sequence[tuple[float, float]]) -> str:
    """The frontier as an SVG path."""
    return "M" + "L".join(f"{at:g},{height:g}" for at, height in corners(points))


def closed(below: Sequence[tuple[float, float]], above: Sequence[tuple[float, float]]) -> str:
    """What lies between two stairs as an SVG path."""
    around = [*corners(below), *reversed(corners(above))]
    return "M" + "L".join(f"{at:g},{height:g}" for at, height in around) + "Z"
