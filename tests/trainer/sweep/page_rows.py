# SPDX-License-Identifier: Apache-2.0
"""Rows of a sweep for its page: Google's 16 sub-models of E4B and some between them, on three tasks.

What was found is drawn from a seed; sizes are those of the sub-models.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from collections.abc import Sequence

from model.slicing.spec import SliceSpec
from model.slicing.table import published_rows
from tests.model.slicing.official import E4B
from trainer.evaluation.statistics import Difference, Interval
from trainer.sweep.page.page import Origin
from trainer.sweep.row import Figure, Row, sizes_of
from trainer.sweep.run import Comparison

ORIGIN = Origin(
    title="Gemma 3n E4B, swept",
    parent="weights/e4b_it",
    command=("matslice", "sweep", "checkpoint=weights/e4b_it", "slices=official", "tasks=[chat,arc_easy,speech]"),
)
TASKS = ("chat", "arc_easy", "speech")
HOSTILE = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>&amp; \u2028$x^{2'


def specs(*, every: int) -> list[tuple[SliceSpec, str | None, float | None]]:
    """Google's sub-models with their names and accuracies, one in so many, and half as many drawn ones."""
    found: list[tuple[SliceSpec, str | None, float | None]] = []
    for row in published_rows()[::every]:
        spec = SliceSpec.resolve(row.written, E4B.text)
        found.append((spec, row.name, float(row.accuracy.rstrip("%")) / 100))
    draw = random.Random(7)
    for number in range(len(found) // 2):
        widths = tuple(draw.choice((4096, 8192, 12288, 16384)) for _ in range(35))
        found.append((SliceSpec(f"mix_{number}", tuple(range(35)), widths), None, None))
    return found


@functools.cache
def sweep_rows(*, every: int = 1) -> tuple[Row, ...]:
    """A row for every sub-model on every task; of Google's, one in so many."""
    draw = random.Random(1)
    found = [(*one, dataclasses.asdict(sizes_of(E4B, one[0]))) for one in specs(every=every)]
    rows: list[Row] = []
    for task in TASKS:
        for spec, official, mmlu, sizes in found:
            quality = sizes["effective_parameters"] / 1e9 + draw.gauss(0, 0.12) - (0.35 if official is None else 0)
            rows.append(Row(
                spec=spec, task=task, metrics=figures(task, quality), num_items=1200, seconds=12.3,
                seconds_together=295.2, peak_memory_bytes=9_700_000_000, model=digest("weights"), data=digest(task),
                seed=0, confidence=0.95, official=official, mmlu=mmlu,
                versions={"matslice": "0.1.0", "torch": "2.10.0", "numpy": "2.3.1"}, **sizes,
            ))  # fmt: skip
    return tuple(rows)


def figures(task: str, quality: float) -> dict[str, Figure]:
    """What could be found of a sub-model this good."""
    share = 0.35 + 0.09 * quality
    if task == "speech":
        return {"wer": figure(0.42 - 0.07 * quality, 0.013, "errors per word", higher=False)}
    loss = figure(3.1 - 0.3 * quality, 0.021, "nats per token", higher=False)
    if task == "arc_easy":
        more = figure(share + 0.02, 0.018, "share of questions")
        return {"accuracy": figure(share, 0.019, "share of questions"), "accuracy_normalised": more}
    return {"loss": loss, "accuracy": figure(share, 0.012, "share of answers")}


def figure(value: float, half: float, unit: str, *, higher: bool = True) -> Figure:
    """A figure in the middle of its interval."""
    return Figure(value=value, low=value - half, high=value + half, unit=unit, higher_is_better=higher)


def comparisons(rows: Sequence[Row]) -> dict[str, Comparison]:
    """With the parent, which is the first, by task."""
    parent = {row.task: row for row in rows if row.spec.name == rows[0].spec.name}
    return {
        task: Comparison(
            differences={name: {
                row.spec.name: less(row.metrics[name], own.metrics[name])
                for row in rows if row.task == task and row.spec.name != own.spec.name
            } for name in own.metrics},
            bands={name: {
                row.spec.name: wider(row.metrics[name]) for row in rows if row.task == task
            } for name in own.metrics},
        )
        for task, own in parent.items()
    }  # fmt: skip


def less(one: Figure, other: Figure) -> Difference:
    """A difference with an interval half as wide."""
    change, half = one.value - other.value, (one.high - one.low) / 4
    return Difference(value=change, low=change - half, high=change + half, p=0.01)


def wider(one: Figure) -> Interval:
    """An interval half as wide again."""
    half = (one.high - one.low) * 0.75
    return Interval(value=one.value, low=one.value - half, high=one.value + half)


def digest(text: str) -> str:
    """A fingerprint."""
    return hashlib.sha256(text.encode()).hexdigest()


def renamed(row: Row, *, spec: str | None = None, task: str | None = None) -> Row:
    """A row of other names."""
    named = dataclasses.replace(row.spec, name=row.spec.name if spec is None else spec)
    return dataclasses.replace(row, spec=named, task=row.task if task is None else task)
