# SPDX-License-Identifier: Apache-2.0
"""A sweep's figures as tables for programs: all of them, and the sub-models in Google's schema."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.slicing.spec import SliceSpec
from model.slicing.table import write_slices
from trainer.checkpoint import write_whole
from trainer.sweep.page.facts import Facts

ROWS_CSV, SLICES_CSV = "rows.csv", "slices.csv"
ACCURACY = "accuracy"
COLUMNS = (
    "spec", "official", "task", "metric", "value", "low", "high", "unit", "higher_is_better", "num_items",
    "band_low", "band_high", "difference", "difference_low", "difference_high", "p_adjusted",
    "effective_parameters", "parameters", "weight_bytes",
    "stored_as", "kv_bytes_per_token", "flops_per_token", "flops_context_tokens", "seconds", "seconds_together",
    "peak_memory_bytes", "mmlu", "kept_layers", "ffn_widths", "confidence", "seed", "model", "data",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets compute, if a cell begins with it


def write_rows_csv(facts: Facts, path: Path) -> None:
    """Write every figure, one a line, unrounded; cells of what is not there are empty.

    ``difference`` is that from the parent; its p-value is adjusted for all sub-models that are compared in the same
    figure on the same task. The band is of all sub-models at once where they were compared, else of
    each by itself, as ``low`` and ``high`` are. Names that a spreadsheet would compute get an apostrophe before them.
    """
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in facts.rows:
        for name, figure in row.metrics.items():
            change = facts.change(row.spec.name, row.task, name)
            band = facts.band(row.spec.name, row.task, name)
            cells: dict[str, Any] = {
                **{column: getattr(row, column) for column in COLUMNS if hasattr(row, column)},
                "spec": row.spec.name, "metric": name, "value": figure.value, "low": figure.low, "high": figure.high,
                "unit": figure.unit, "higher_is_better": figure.higher_is_better,
                "band_low": band[0], "band_high": band[1], "difference": change and change.value,
                "difference_low": change and change.low,
                "difference_high": change and change.high, "p_adjusted": change and change.p,
                "kept_layers": list(row.spec.kept_layers), "ffn_widths": list(row.spec.ffn_widths),
            }  # fmt: skip
            writer.writerow([cell(cells[column]) for column in COLUMNS])
    write_whole(path, content.getvalue())


def cell(value: Any) -> str:
    """One value: numbers unrounded, lists and truth values as JSON, nothing for what is not there."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else str(value)
    return json.dumps(value)


def write_slices_csv(facts: Facts, path: Path, *, mmlu_task: str | None) -> None:
    """Write the sub-models in Google's schema; those of its own table by their published names.

    Args:
        facts: What was found.
        path: Is overwritten.
        mmlu_task: The task whose accuracy stands in the accuracy column, which is of MMLU; None leaves it empty.

    Raises:
        ConfigError: There is no such task, or it has no accuracy.
    """
    if mmlu_task is not None and ACCURACY not in facts.metrics(mmlu_task):
        found = [task for task in facts.tasks if ACCURACY in facts.metrics(task)]
        raise ConfigError(
            f"mmlu_task is '{mmlu_task}', but no such task with an accuracy was measured;"
            f" choose one of {', '.join(found) or 'none: leave it out'}"
        )
    specs: dict[str, SliceSpec] = {}
    accuracy: dict[str, str] = {}
    for row in facts.subs:
        name = row.official if row.official and row.official not in specs else row.spec.name
        specs[name] = row.spec
        if mmlu_task is not None and (figure := facts.figure(row.spec.name, mmlu_task, ACCURACY)):
            accuracy[name] = f"{figure.value:.2%}"
    write_slices(path, specs, facts.config, accuracy=accuracy, overwrite=True)
