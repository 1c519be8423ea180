# SPDX-License-Identifier: Apache-2.0
"""A task's plot as it stands in the page before any program runs: places of ticks, points, steps and band."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trainer.sweep.page.facts import Cost, Facts, short

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 16, 50
STEPS = (1, 2, 2.5, 5, 10)  # of ticks, times powers of ten
DOT, LETTER = 6, 7.0  # half of a point, and a letter of a name
PADDING = 0.06  # of the range, on either side


Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Place:
    """Where a name may stand beside its point: how its text is anchored, and how much of it lies left of there."""

    anchor: str
    share: float
    right: float
    up: float


PLACES = (
    Place("end", 1, -9, -8), Place("middle", 0.5, 0, -13), Place("start", 0, 9, 17),
    Place("middle", 0.5, 0, 21), Place("start", 0, 9, -8), Place("end", 1, -9, 17),
)  # fmt: skip


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
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "middle"


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
            label=label,
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
        points=named(points),
        steps=stairs([(at, value) for at, value, _, _ in tops]),
        band=closed([(at, low) for at, _, low, _ in tops], [(at, high) for at, _, _, high in tops]),
    )


def named(points: Sequence[Point]) -> list[Point]:
    """The points with their names put where they cover nothing, or left out where there is no such place."""
    taken = [(point.x - DOT, point.y - DOT, point.x + DOT, point.y + DOT) for point in points]
    found: list[Point] = []
    for point in points:
        wide = len(point.label) * LETTER + 4
        places = (
            (place, (left, point.y + place.up - 11, left + wide, point.y + place.up + 3))
            for place in PLACES
            for left in [point.x + place.right - wide * place.share]
        )
        free = next(((place, box) for place, box in places if point.label and is_free(box, taken)), None)
        if free is None:
            found.append(replace(point, label=""))
            continue
        place, box = free
        taken.append(box)
        found.append(replace(point, label_x=point.x + place.right, label_y=point.y + place.up, anchor=place.anchor))
    return found


def is_free(box: Box, taken: Sequence[Box]) -> bool:
    """Whether a name here is within the plot and covers nothing."""
    left, top, right, bottom = box
    if left < LEFT or right > WIDTH - RIGHT or top < 0 or bottom > HEIGHT - BOTTOM:
        return False
    return all(right < x0 or x1 < left or bottom < y0 or y1 < top for x0, y0, x1, y1 in taken)


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
