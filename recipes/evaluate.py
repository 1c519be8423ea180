# SPDX-License-Identifier: Apache-2.0
"""Measure sub-models of one checkpoint on held-out conversations: one model in memory, what they have in common once.

What is found of a sub-model is, to the last bit, what a sweep finds of it on the same batches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.adapter.lora import base_of
from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig
from model.errors import ConfigError
from model.layers.embedding import TablePlacement
from model.processor.audio import LongAudio
from model.slicing.count import Layout, count_effective_parameters, count_parameters
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from recipes.build import (
    build_adapted,
    build_cache,
    build_processor,
    build_rows,
    find_device,
    towers_of_adapter,
    without_idle_towers,
)  # fmt: skip
from recipes.locate import find_checkpoint
from recipes.output import check_new_file
from recipes.program import start
from recipes.sizes import resolve_sizes
from trainer.checkpoint import write_whole
from trainer.config import Device, Precision
from trainer.data.collate import Collator
from trainer.data.config import LongRows
from trainer.evaluation.engine import Engine, RowScore
from trainer.evaluation.held_out import Score
from trainer.evaluation.held_out_rows import score_of, score_rows
from trainer.soft_tokens import SharedTowers

REMEDY = "a larger max_length_tokens measures such rows too; leaving some out would be another measurement"
COLUMNS = {  # key of a row -> how a person reads it
    "size": "{}", "parameters": "{:,}", "effective_parameters": "{:,}",
    "loss": "{:.4f}", "perplexity": "{:.3f}", "accuracy": "{:.3f}", "examples": "{:,}",
}  # fmt: skip


@dataclass(kw_only=True, slots=True)
class EvaluateRecipe:
    """Measure sub-models of one checkpoint on held-out conversations; the model is loaded once."""

    checkpoint: str  # directory or hub name of published weights
    files: list[str]  # files of rows (jsonl, json, parquet, csv, tsv, arrow, txt), directories, hub names
    sizes: dict[str, SliceConfig]
    adapter_path: Path | None = None  # directory of a trained adapter
    merge: bool = True  # fold the adapter into the weights first, as slices that are shipped have it; takes less time
    output: Path | None = None  # new file for the rows, as JSON Lines
    modalities: list[Modality] | None = None  # towers to load if needed, beside text; null = all
    max_examples: int | None = None  # measure the first ones only; null = all
    max_length_tokens: int = 2048
    long_audio: LongAudio = LongAudio.refuse  # sound of more than 30 s: refuse, truncate, or chunk it into several
    batch_size: int = 8  # conversations
    workers: int = 2  # threads that read images and sound ahead; 0 = no thread
    per_layer_table: TablePlacement = TablePlacement.device  # or host, mmap: rows come as needed
    token_cache: Path | None = None  # directory that keeps rows as tokens, as data.token_cache of training; may be one
    soft_token_cache: Path | None = None  # directory that keeps what the towers make of images and sound
    precision: Precision = Precision.fp32
    device: Device = Device.auto

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("files is empty; name at least one JSON Lines file of conversations, or another source")
        for key, least in {"max_examples": 1, "batch_size": 1, "max_length_tokens": 2, "workers": 0}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"{key} is {value}; it must be at least {least}")


def run(recipe: EvaluateRecipe) -> None:
    """Measure every size, print a table, and write its rows if there is an output."""
    if recipe.output is not None:
        check_new_file(recipe.output)
    config = config_of(recipe, find_checkpoint(recipe.checkpoint))
    rows = [describe(spec, score, config) for spec, score in measure(recipe)]
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
    config = config_of(recipe, checkpoint)
    specs = resolve_sizes(recipe.sizes, config.text)
    processor = build_processor(
        None, checkpoint, config, long_audio=recipe.long_audio, long_audio_key="long_audio"
    )  # fmt: skip
    found = build_rows(
        recipe.files, processor,
        max_length_tokens=recipe.max_length_tokens, long_rows=LongRows.refuse, remedy=REMEDY,
        token_cache=recipe.token_cache,
    )  # fmt: skip
    rows = found.rows[: recipe.max_examples]
    adapted = towers_of_adapter(
        config, recipe.adapter_path, merge=recipe.merge, per_layer_table=recipe.per_layer_table
    )  # fmt: skip
    loaded = without_idle_towers(config, (row.ids for row in rows), adapted=adapted).modalities
    if idle := [modality for modality in config.modalities if modality not in loaded]:
        print(f"loads {' and '.join(loaded)}; no row needs {' or '.join(idle)}", file=sys.stderr)
    device = find_device(recipe.device)
    model = build_adapted(
        checkpoint, recipe.adapter_path, dtype=recipe.precision.dtype, device=device, modalities=loaded,
        per_layer_table=recipe.per_layer_table, merge=recipe.merge,
    )  # fmt: skip
    gemma = base_of(model)
    cache = build_cache(recipe.soft_token_cache, gemma, processor, device)
    engine = Engine(
        model=model, tokenizer=processor.tokenizer, collator=Collator(processor.tokenizer.pad_id, processor, cache),
        towers=SharedTowers(gemma, cache),
    )  # fmt: skip
    batches = score_rows(engine, rows, specs, batch_size=recipe.batch_size, workers=recipe.workers)
    return list(zip(specs, add_up(batches, specs, len(rows)), strict=True))


def add_up(batches: Iterable[Sequence[Sequence[RowScore]]], specs: Sequence[SliceSpec], num_rows: int) -> list[Score]:
    """The scores of all batches; a large model takes long for them, so how far it is is said ten times."""
    scores = [Score()] * len(specs)
    for batch in batches:
        before = scores[0].examples
        scores = [sum(map(score_of, rows), score) for score, rows in zip(scores, batch, strict=True)]
        done = scores[0].examples
        if 10 * done // num_rows > 10 * before // num_rows:
            losses = ", ".join(f"{spec.name} {score.loss:.4f}" for spec, score in zip(specs, scores, strict=True))
            # The table comes at the end, on standard output.
            print(f"{done:,} of {num_rows:,} conversations: loss of {losses}", file=sys.stderr, flush=True)
    return scores


def config_of(recipe: EvaluateRecipe, checkpoint: Path) -> ModelConfig:
    """The checkpoint's config, without the towers that are not to be loaded."""
    config = ModelConfig.read(checkpoint)
    return config if recipe.modalities is None else config.only(recipe.modalities)


def describe(spec: SliceSpec, score: Score, config: ModelConfig) -> dict[str, Any]:
    """One size: how large it is, towers included, and how well it does.

    Accuracy is the share of answers right to the letter.
    """
    shapes = model_shapes(config, Layout.used).items()
    return {
        "size": spec.name,
        "parameters": count_parameters(shapes, SubModel(spec), config.text),
        "effective_parameters": count_effective_parameters(shapes, SubModel(spec), config.text),
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
    return start("evaluate", EvaluateRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
