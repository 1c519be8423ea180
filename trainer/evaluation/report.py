# SPDX-License-Identifier: Apache-2.0
"""One model in several sizes and on several tasks, before and after training: a table, a picture, rows for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from trainer.checkpoint import write_whole
from trainer.evaluation.held_out import Score

ROWS_FILE, MARKDOWN_FILE, PICTURE_FILE = "report.jsonl", "report.md", "report.png"
HEADINGS = ("size", "parameters", "effective", "bytes")
MAJORITY = "majority answer"
DPI = 150
PANEL_INCHES = (4.2, 4.2)


@dataclass(frozen=True)
class TaskScore:
    """One size on one task.

    Args:
        before: Before training on it.
        after: Afterwards.
        majority: Accuracy of always giving the most frequent training answer.
    """

    before: Score
    after: Score
    majority: float

    @property
    def standard_error(self) -> float:
        """How far the accuracy after training may be off by the luck of so many examples (one standard deviation)."""
        return math.sqrt(self.after.accuracy * (1 - self.after.accuracy) / self.after.examples)

    @property
    def cell(self) -> str:
        """Both accuracies for people."""
        return f"{self.before.accuracy:.3f} → {self.after.accuracy:.3f}"

    def record(self) -> dict[str, Any]:
        """The scores as JSON values, unrounded."""
        return {
            "loss_before": self.before.loss,
            "loss_after": self.after.loss,
            "accuracy_before": self.before.accuracy,
            "accuracy_after": self.after.accuracy,
            "standard_error": self.standard_error,
            "majority": self.majority,
            "examples": self.after.examples,
            "supervised_tokens": self.after.supervised_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """What is known of one size.

    Args:
        parameters: Of the text decoder.
        effective_parameters: Those without embeddings and per-layer embeddings.
        bytes: Of the weights on disk, towers included.
        tasks: Scores by the name of the task; the same tasks in every row.
    """

    name: str
    parameters: int
    effective_parameters: int
    bytes: int
    tasks: Mapping[str, TaskScore]

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``headings``."""
        sizes = (f"{number:,}" for number in (self.parameters, self.effective_parameters, self.bytes))
        return (self.name, *sizes, *(score.cell for score in self.tasks.values()))

    def record(self) -> dict[str, Any]:
        """The row as JSON values, unrounded."""
        return {
            "size": self.name,
            "parameters": self.parameters,
            "effective_parameters": self.effective_parameters,
            "bytes": self.bytes,
            "tasks": {name: score.record() for name, score in self.tasks.items()},
        }


def write_report(rows: Sequence[SizeRow], directory: Path) -> None:
    """Write ``report.jsonl``, ``report.md`` and ``report.png`` into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / ROWS_FILE, "".join(json.dumps(row.record()) + "\n" for row in rows))
    write_whole(directory / MARKDOWN_FILE, markdown(rows))
    draw(rows, directory / PICTURE_FILE)


def headings(rows: Sequence[SizeRow]) -> tuple[str, ...]:
    """The names of the columns: each task with the number of examples that its accuracies are of."""
    return (*HEADINGS, *(f"{name} (of {score.after.examples})" for name, score in rows[0].tasks.items()))


def majority_cells(rows: Sequence[SizeRow]) -> tuple[str, ...]:
    """The last row: what a model must beat to have read, seen or heard anything."""
    blanks = ("",) * (len(HEADINGS) - 1)
    return (MAJORITY, *blanks, *(f"{score.majority:.3f}" for score in rows[0].tasks.values()))


def table(rows: Sequence[SizeRow]) -> Table:
    """The rows for a terminal."""
    shown = Table(title="one model, every size: accuracy on each task, before → after")
    for index, heading in enumerate(headings(rows)):
        shown.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        shown.add_row(*row.cells())
    shown.add_section()
    shown.add_row(*majority_cells(rows))
    return shown


def markdown(rows: Sequence[SizeRow]) -> str:
    """The rows as a Markdown table."""
    columns = headings(rows)
    ruler = ("---", *["---:"] * (len(columns) - 1))
    lines = (columns, ruler, *(row.cells() for row in rows), majority_cells(rows))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def draw(rows: Sequence[SizeRow], path: Path) -> None:
    """Write a PNG: for each task the accuracy over effective parameters, one point per size."""
    ordered = sorted(rows, key=lambda row: row.effective_parameters)
    tasks = list(ordered[0].tasks)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(tasks), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        draw_task(axes, ordered, task)
    panels[0].set_ylabel("accuracy (whole answer)")
    panels[0].legend(loc="upper left", fontsize=8)
    figure.suptitle("One base, one adapter, every size; bars: one standard error")
    figure.savefig(path, dpi=DPI)


def draw_task(axes: Axes, ordered: Sequence[SizeRow], task: str) -> None:
    """One panel: a task, before and after, and the majority answer."""
    sizes = [row.effective_parameters / 1e6 for row in ordered]
    scores = [row.tasks[task] for row in ordered]
    after = [score.after.accuracy for score in scores]
    axes.errorbar(
        sizes, after, yerr=[score.standard_error for score in scores],
        marker="s", capsize=3, color="C0", label="after",
    )  # fmt: skip
    axes.plot(sizes, [score.before.accuracy for score in scores], marker="o", color="C1", label="before")
    axes.plot(sizes, [score.majority for score in scores], color="0.5", linestyle="--", label=MAJORITY)
    for row, millions, score in zip(ordered, sizes, scores, strict=True):
        top = (millions, score.after.accuracy + score.standard_error)
        axes.annotate(row.name, top, textcoords="offset points", xytext=(0, 5), fontsize=7, ha="center")
    axes.set(
        title=f"{task} ({scores[0].after.examples} held out)", xlabel="effective parameters (millions)",
        ylim=(-0.03, 1.12),
    )  # fmt: skip
    axes.margins(x=0.2)  # room for the names at both ends
    axes.grid(alpha=0.3)
