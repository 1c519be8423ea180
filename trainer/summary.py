# SPDX-License-Identifier: Apache-2.0
"""What a run came to, from its log: every measured sub-model before and after, and how fast it went."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from trainer.metrics import Record

SUMMARY_FILE = "summary.json"
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One sub-model on the held-out rows after ``step``."""

    step: int
    loss: float  # nats per supervised token
    perplexity: float
    accuracy: float  # share of examples

    @classmethod
    def of(cls, record: Record) -> Measured:
        """What a validation record says."""
        return cls(**{key: record[key] for key in ("step", "loss", "perplexity", "accuracy")})


@dataclass(frozen=True, kw_only=True)
class SizeSummary:
    """One sub-model over a run; ``before`` is None where nothing was measured ahead of the first step.

    ``after`` and ``best`` are None where nothing was measured since, as of a run that was stopped before it was due.
    """

    before: Measured | None
    after: Measured | None
    best: Measured | None  # the lowest loss of all after a step


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole run. Medians are over the log's lines, so that a pause or a slow first step does not count."""

    steps: int
    train_loss: float | None  # of the last line
    tokens_per_second: float | None
    supervised_tokens_per_second: float | None
    memory_bytes: int | None  # the most, in the first process
    sizes: Mapping[str, SizeSummary]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def summarize(records: Iterable[Record]) -> Summary:
    """The summary of a run's records, in the order they were logged."""
    train: list[Record] = []
    measured: dict[str, list[Measured]] = {}
    for record in records:
        if record["kind"] == "train":
            train.append(record)
        elif record["kind"] == "validation":
            measured.setdefault(record["spec"], []).append(Measured.of(record))
    steps = [record["step"] for record in train] + [one.step for found in measured.values() for one in found]
    return Summary(
        steps=max(steps, default=0),
        train_loss=train[-1]["loss"] if train else None,
        tokens_per_second=median(train, "tokens_per_second"),
        supervised_tokens_per_second=median(train, "supervised_tokens_per_second"),
        memory_bytes=max((record["memory_bytes"] for record in train), default=None),
        sizes={name: over_run(found) for name, found in measured.items()},
    )


def over_run(found: list[Measured]) -> SizeSummary:
    """One sub-model's measurements, in order, put together."""
    before = next((one for one in found if one.step == 0), None)
    trained = [one for one in found if one.step > 0]
    best = min(trained, key=lambda one: one.loss, default=None)
    return SizeSummary(before=before, after=trained[-1] if trained else None, best=best)


def median(records: list[Record], key: str) -> float | None:
    """The middle value of a figure; None where there is none."""
    return statistics.median(record[key] for record in records) if records else None


def summary_table(summary: Summary) -> Table:
    """Before and after, a line for each sub-model."""
    title = f"held-out rows, before and after {summary.steps} steps"
    table = Table("sub-model", title=title, title_justify="left")
    for column in ("loss", "perplexity", "accuracy", "lowest loss (step)"):
        table.add_column(column, justify="right")
    for name, size in summary.sizes.items():
        table.add_row(
            name,
            change(size, lambda one: f"{one.loss:.4f}"),
            change(size, lambda one: f"{one.perplexity:.2f}"),
            change(size, lambda one: f"{one.accuracy:.3f}"),
            NOT_MEASURED if size.best is None else f"{size.best.loss:.4f} ({size.best.step})",
        )
    return table


def change(size: SizeSummary, said: Callable[[Measured], str]) -> str:
    """A figure before and after."""
    after = NOT_MEASURED if size.after is None else said(size.after)
    return after if size.before is None else f"{said(size.before)} → {after}"
