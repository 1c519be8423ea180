# SPDX-License-Identifier: Apache-2.0
"""What a run that came to an end leaves beside its checkpoints: a picture of its losses, and a summary."""

from __future__ import annotations

from pathlib import Path

from trainer.curve import CURVE_FILE, draw_loss_curve
from trainer.sinks import METRICS_FILE, read_records
from trainer.summary import SUMMARY_FILE, summarize


def write_results(directory: Path) -> None:
    """Write both into the directory of a run, from its log."""
    draw_loss_curve(read_records(directory / METRICS_FILE), directory / CURVE_FILE)
    summarize(read_records(directory / METRICS_FILE)).write(directory / SUMMARY_FILE)
