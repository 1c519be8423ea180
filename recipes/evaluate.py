# SPDX-License-Identifier: Apache-2.0
"""Measure sub-models of one checkpoint on held-out conversations: one model in memory, one spec after another."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from model.config import ModelConfig, TextConfig
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceSpec
from recipes.build import (
    base_of,
    build_adapted,
    build_cache,
    build_processor,
    build_rows,
    find_checkpoint,
    find_device,
    resolve_sizes,
)  # fmt: skip
from recipes.output import check_new_file
from recipes.program import start
from recipes.schema import EvaluateRecipe
from trainer.checkpoint import write_whole
from trainer.data.collate import Collator
from trainer.data.sources import LongRows
from trainer.evaluation.held_out import Score, evaluate
from trainer.soft_tokens import SharedTowers

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
    rows = [describe(spec, score, config.text) for spec, score in measure(recipe)]
    Console(width=None if sys.stdout.isatty() else 200).print(table(rows))
    if recipe.output is not None:
        recipe.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(recipe.output, "".join(json.dumps(row) + "\n" for row in rows))


def measure(recipe: EvaluateRecipe) -> list[tuple[SliceSpec, Score]]:
    """The score of every size, in the order they are written in; media go through their towers once for all.

    Raises:
        MatsliceError: A file, a size or the checkpoint cannot be used.
    """
    checkpoint = find_checkpoint(recipe.checkpoint)
    config = ModelConfig.read(checkpoint)
    if recipe.modalities is not None:
        config = config.only(recipe.modalities)
    specs = resolve_sizes(recipe.sizes, config.text)
    processor = build_processor(None, checkpoint, config, long_audio=recipe.long_audio)
    found = build_rows(
        recipe.files, processor,
        max_length_tokens=recipe.max_length_tokens, long_rows=LongRows.refuse, remedy=REMEDY,
    )  # fmt: skip
    model = build_adapted(
        checkpoint, recipe.adapter_path, dtype=recipe.precision.dtype, device=find_device(recipe.device),
        modalities=config.modalities,
    )  # fmt: skip
    gemma = base_of(model)
    cache = build_cache(recipe.soft_token_cache, gemma, processor, find_device(recipe.device))
    scores = evaluate(
        model, found.rows[: recipe.max_examples], specs,
        collator=Collator(processor.tokenizer.pad_id, processor, cache),
        batch_size=recipe.batch_size, towers=SharedTowers(gemma, cache), workers=recipe.workers,
    )  # fmt: skip
    return list(zip(specs, scores, strict=True))


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
