# SPDX-License-Identifier: Apache-2.0
"""The loss curve of a run, drawn from its log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.metrics import Record

CURVE_FILE = "loss.png"


def draw_loss_curve(records: Iterable[Record], path: Path) -> None:
    """Write a PNG with the training loss as a line, and for each sub-model its validation loss as points."""
    train: list[tuple[int, float]] = []
    validation: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        if record["kind"] == "train":
            train.append((record["step"], record["loss"]))
        elif record["kind"] == "validation":
            validation[record["spec"]].append((record["step"], record["loss"]))
    # Not pyplot: it keeps figures in a global list and looks for a display.
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per supervised token)")
    if train:
        axes.plot(*zip(*train, strict=True), color="0.6", linewidth=1, label="training")
    for name, points in validation.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=f"validation, {name}")
    if train or validation:
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
