# SPDX-License-Identifier: Apache-2.0
"""Measure sub-models of one checkpoint on held-out conversations: one model in memory, one spec after another."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from model.config import ModelConfig, TextConfig
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceSpec
from recipes.build import (
    build_adapted,
    build_rows,
    build_tokenizer,
    find_checkpoint,
    find_device,
    resolve_sizes,
)  # fmt: skip
from recipes.output import check_new_file
from recipes.program import start
from recipes.schema import EvaluateRecipe
from trainer.checkpoint import write_whole
from trainer.data.sources import LongRows
from trainer.evaluation.held_out import Score, evaluate

REMEDY = "a larger max_length_tokens measures such rows too; leaving some out would be another measurement"
COLUMNS = {  # key of a row -> how a person reads it
    "size": "{}", "parameters": "{:,}", "effective_parameters": "{:,}",
    "loss": "{:.4f}", "perplexity": "{:.3f}", "accuracy": "{:.3f}", "examples": "{:,}",
}  # fmt: skip


def run(recipe: EvaluateRecipe) -> None:
    """Measure every size, print a table, and write its rows if there is an output."""
    if recipe.output is not None:
        check_new_file(recipe.output)
    config = ModelConfig.read(find_checkpoint(recipe.checkpoint))
    rows: list[dict[str, Any]] = []
    for spec, score in measure(recipe):
        # A large model takes minutes for each size; the table comes at the end, on standard output.
        print(f"{spec.name}: loss {score.loss:.4f}, {score.examples:,} examples", file=sys.stderr, flush=True)
        rows.append(describe(spec, score, config.text))
    Console(width=None if sys.stdout.isatty() else 200).print(table(rows))
    if recipe.output is not None:
        recipe.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(recipe.output, "".join(json.dumps(row) + "\n" for row in rows))


def measure(recipe: EvaluateRecipe) -> Iterator[tuple[SliceSpec, Score]]:
    """The score of every size, in the order they are written in, as soon as it is known.

    Raises:
        MatsliceError: A file, a size or the checkpoint cannot be used.
    """
    checkpoint = find_checkpoint(recipe.checkpoint)
    config = ModelConfig.read(checkpoint)
    specs = resolve_sizes(recipe.sizes, config.text)
    tokenizer = build_tokenizer(None, checkpoint, config.text)
    found = build_rows(
        recipe.files, tokenizer, config.text,
        max_length_tokens=recipe.max_length_tokens, long_rows=LongRows.refuse, remedy=REMEDY,
    )  # fmt: skip
    model = build_adapted(
        checkpoint, recipe.adapter_path, dtype=recipe.precision.dtype, device=find_device(recipe.device)
    )  # fmt: skip
    rows = found.rows[: recipe.max_examples]
    for spec in specs:
        yield spec, evaluate(model, rows, spec, batch_size=recipe.batch_size, pad_id=tokenizer.pad_id)


def describe(spec: SliceSpec, score: Score, config: TextConfig) -> dict[str, Any]:
    """One size: how large it is and how well it does. Accuracy is the share of answers right to the letter."""
    shapes = text_shapes(config, Layout.used).items()
    return {
        "size": spec.name,
        "parameters": count_parameters(shapes, spec, config),
        "effective_parameters": count_effective_parameters(shapes, spec, config),
        "loss": score.loss,
        "perplexity": score.perplexity,
        "accuracy": score.accuracy,
        "examples": score.examples,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    shown = Table()
    for column in COLUMNS:
        shown.add_column(column.replace("_", " "), justify="left" if column == "size" else "right")
    for row in rows:
        shown.add_row(*(form.format(row[column]) for column, form in COLUMNS.items()))
    return shown


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("evaluate", run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
