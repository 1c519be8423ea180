# SPDX-License-Identifier: Apache-2.0
"""A sweep's rows where runs are compared: tables and plots on Weights & Biases, figures for TensorBoard.

Both are made anew from all rows, so that a sweep that is gone on with, or published twice, stands there once.
"""

from __future__ import annotations

import importlib
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.slicing.spec import SliceSpec
from trainer.config import WandbMode
from trainer.sinks import WandbSink
from trainer.sweep.row import Row
from trainer.tensorboard import TENSORBOARD_DIRECTORY, check_installed

SIZES = (
    "effective_parameters", "parameters", "weight_bytes", "kv_bytes_per_token", "flops_per_token",
)  # fmt: skip
ABOUT = ("num_items", "seconds", "peak_memory_bytes")
REPORTS = (".html", ".png", ".csv", ".json", ".jsonl", ".yaml")  # files of a sweep's directory that go along
NOT_IN_NAMES = re.compile(r"[^\w.-]+")  # of artifacts and directories


def check_publishing(*, wandb: WandbMode, tensorboard: bool) -> None:
    """Raise ConfigError if something is asked for that is not there: before anything is measured."""
    if wandb is WandbMode.online and importlib.import_module("wandb").api.api_key is None:
        raise ConfigError(
            "wandb=online, but nobody is logged in; say 'wandb login' once, set WANDB_API_KEY, or write wandb=offline"
        )
    if tensorboard:
        check_installed("tensorboard")


def publish(rows: Sequence[Row], directory: Path, *, wandb: WandbMode, project: str, tensorboard: bool) -> None:
    """Show the rows of a sweep elsewhere, where that is asked for.

    Args:
        rows: All there are.
        directory: The sweep's, in which what is offline is kept, and whose reports go along.
        wandb: Whether to publish on Weights & Biases, and whether over the network.
        project: The project there.
        tensorboard: Whether to write events for TensorBoard.

    Raises:
        ConfigError: Weights & Biases cannot be reached, nobody is logged in, or TensorBoard is not installed.
    """
    if not rows:
        return
    if tensorboard:
        to_tensorboard(rows, directory)
    if wandb is not WandbMode.off:
        to_wandb(rows, directory, mode=wandb, project=project)


def to_wandb(rows: Sequence[Row], directory: Path, *, mode: WandbMode, project: str) -> None:
    """A table and a plot for each task, the report's files as an artifact, and what decides the figures beside them."""
    import wandb  # heavy, and most sweeps do without

    sink = WandbSink(directory, mode=mode, project=project, config=settings_of(rows), key="wandb")
    try:
        for task, found in by_task(rows).items():
            columns: list[Any] = [*columns_of(found)]
            table = wandb.Table(
                columns=columns, data=[[line.get(name) for name in columns] for line in lines_of(found)]
            )
            main = main_metric(found)
            title = f"{task}: {main} over effective parameters"
            plot = wandb.plot.scatter(table, x="effective_parameters", y=main, title=title)
            sink.run.log({f"sweep/{task}": table, f"frontier/{task}": plot})
        artifact = wandb.Artifact(f"sweep-{NOT_IN_NAMES.sub('-', directory.absolute().name)}", type="sweep")
        for file in reports_in(directory):
            artifact.add_file(str(file), name=file.name)
        sink.run.log_artifact(artifact)
    finally:
        sink.close()


def to_tensorboard(rows: Sequence[Row], directory: Path) -> None:
    """Curves over effective parameters, which stand where steps do; a table of sub-models; the rows as a text."""
    check_installed("tensorboard")
    from torch.utils.tensorboard import SummaryWriter  # heavy, and most sweeps do without

    place = directory / TENSORBOARD_DIRECTORY
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(place) as writer:
        for task, found in by_task(rows).items():
            for row in sorted(found, key=lambda one: one.effective_parameters):
                for name, value in values_of(row).items():
                    writer.add_scalar(f"{task}/{name}", value, global_step=row.effective_parameters)
            writer.add_text(f"sweep/{task}", markdown(found))
        for number, (spec, found) in enumerate(by_spec(rows).items()):
            metrics = {f"{row.task}/{name}": value for row in found for name, value in values_of(row).items()}
            sizes = {name: getattr(found[0], name) for name in SIZES}
            chosen = {"sub-model": spec.name, "layers": len(spec.kept_layers), "width": mean_width(spec), **sizes}
            # The number keeps apart what is named alike but for characters that no directory may have.
            writer.add_hparams(chosen, metrics, run_name=f"{number}-{NOT_IN_NAMES.sub('-', spec.name)}")


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every task."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(row)
    return found


def by_spec(rows: Sequence[Row]) -> dict[SliceSpec, list[Row]]:
    """The rows of every sub-model."""
    found: dict[SliceSpec, list[Row]] = {}
    for row in rows:
        found.setdefault(row.spec, []).append(row)
    return found


def main_metric(rows: Sequence[Row]) -> str:
    """The name of the figure that a task is about."""
    return next(iter(rows[0].metrics))


def values_of(row: Row) -> dict[str, float]:
    """The figures of a row that are numbers."""
    return {name: figure.value for name, figure in row.metrics.items() if math.isfinite(figure.value)}


def lines_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of a table, from the smallest sub-model on; what is no number is None."""
    lines: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda one: one.effective_parameters):
        line: dict[str, Any] = {
            "sub-model": row.spec.name,
            "official": row.official,
            "layers": len(row.spec.kept_layers),
        }
        line |= {"width": mean_width(row.spec)} | {name: getattr(row, name) for name in SIZES}
        for name, figure in row.metrics.items():
            line |= {name: figure.value, f"{name} low": figure.low, f"{name} high": figure.high}
        line |= {name: getattr(row, name) for name in ABOUT}
        lines.append({name: None if is_nothing(value) else value for name, value in line.items()})
    return lines


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The columns of a table that holds all of these rows."""
    return list(dict.fromkeys(name for line in lines_of(rows) for name in line))


def is_nothing(value: object) -> bool:
    """Whether a value is a number that no table can hold."""
    return isinstance(value, float) and not math.isfinite(value)


def markdown(rows: Sequence[Row]) -> str:
    """The rows of a task as a table in Markdown."""
    columns = columns_of(rows)
    lines = [columns, ["---"] * len(columns)]
    lines += [[said(line.get(name)) for name in columns] for line in lines_of(rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def said(value: object) -> str:
    """A cell of a table."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def mean_width(spec: SliceSpec) -> float:
    """FFN neurons of a layer, on average over the kept ones."""
    return sum(spec.ffn_widths) / max(len(spec.ffn_widths), 1)


def settings_of(rows: Sequence[Row]) -> Mapping[str, Any]:
    """What all rows are of."""
    tasks = {task: found[0].data for task, found in by_task(rows).items()}
    return {
        "model": rows[0].model, "tasks": tasks, "seed": rows[0].seed, "confidence": rows[0].confidence,
        "stored_as": rows[0].stored_as.name, "versions": dict(rows[0].versions),
    }  # fmt: skip


def reports_in(directory: Path) -> list[Path]:
    """The files of a sweep that go along."""
    return sorted(file for file in directory.iterdir() if file.is_file() and file.suffix in REPORTS)
