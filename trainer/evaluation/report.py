# SPDX-License-Identifier: Apache-2.0
"""One model in several sizes, before and after training: a table to read, a picture, and rows for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from trainer.checkpoint import write_whole
from trainer.evaluation.held_out import Score

ROWS_FILE, MARKDOWN_FILE, PICTURE_FILE = "report.jsonl", "report.md", "report.png"
HEADINGS = (
    "size", "parameters", "effective", "bytes", "loss before", "loss after", "accuracy before", "accuracy after",
    "majority",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """What is known of one size.

    Args:
        effective_parameters: Those of the text decoder without embeddings and per-layer embeddings.
        bytes: Of the weights on disk.
        majority: Accuracy of always giving the most frequent training answer.
    """

    name: str
    parameters: int
    effective_parameters: int
    bytes: int
    before: Score
    after: Score
    majority: float

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``HEADINGS``."""
        return (
            self.name,
            f"{self.parameters:,}",
            f"{self.effective_parameters:,}",
            f"{self.bytes:,}",
            f"{self.before.loss:.3f}",
            f"{self.after.loss:.3f}",
            f"{self.before.accuracy:.3f}",
            f"{self.after.accuracy:.3f}",
            f"{self.majority:.3f}",
        )

    def record(self) -> dict[str, Any]:
        """The row as JSON values, unrounded."""
        return {
            "size": self.name,
            "parameters": self.parameters,
            "effective_parameters": self.effective_parameters,
            "bytes": self.bytes,
            "loss_before": self.before.loss,
            "loss_after": self.after.loss,
            "accuracy_before": self.before.accuracy,
            "accuracy_after": self.after.accuracy,
            "majority": self.majority,
            "examples": self.after.examples,
            "supervised_tokens": self.after.supervised_tokens,
        }


def write_report(rows: Sequence[SizeRow], directory: Path) -> None:
    """Write ``report.jsonl``, ``report.md`` and ``report.png`` into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / ROWS_FILE, "".join(json.dumps(row.record()) + "\n" for row in rows))
    write_whole(directory / MARKDOWN_FILE, markdown(rows))
    draw(rows, directory / PICTURE_FILE)


def table(rows: Sequence[SizeRow]) -> Table:
    """The rows for a terminal."""
    shown = Table(title="one model, every size")
    for index, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        shown.add_row(*row.cells())
    return shown


def markdown(rows: Sequence[SizeRow]) -> str:
    """The rows as a Markdown table."""
    ruler = ("---", *["---:"] * (len(HEADINGS) - 1))
    lines = (HEADINGS, ruler, *(row.cells() for row in rows))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def draw(rows: Sequence[SizeRow], path: Path) -> None:
    """Write a PNG: loss and accuracy over effective parameters, before and after, one point per size."""
    ordered = sorted(rows, key=lambda row: row.effective_parameters)
    sizes = [row.effective_parameters / 1e6 for row in ordered]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracies = figure.subplots(1, 2)
    for phase, marker in (("before", "o"), ("after", "s")):
        scores: list[Score] = [getattr(row, phase) for row in ordered]
        losses.plot(sizes, [score.loss for score in scores], marker=marker, label=phase)
        accuracies.plot(sizes, [score.accuracy for score in scores], marker=marker, label=phase)
    for row, millions in zip(ordered, sizes, strict=True):
        losses.annotate(row.name, (millions, row.after.loss), textcoords="offset points", xytext=(4, 6), fontsize=8)
    accuracies.plot(sizes, [row.majority for row in ordered], color="0.5", linestyle="--", label="majority answer")
    losses.set(xlabel="effective parameters (millions)", ylabel="loss (nats per supervised token)")
    accuracies.set(xlabel="effective parameters (millions)", ylabel="accuracy (whole answer)", ylim=(-0.02, 1.02))
    for axes in (losses, accuracies):
        axes.margins(x=0.1)  # room for the name of the largest
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
