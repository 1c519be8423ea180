# SPDX-License-Identifier: Apache-2.0
"""Train a model, or an adapter on it. Everything that can be refused is refused before weights are read."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from model.adapter.lora import attach
from model.adapter.targets import resolve_targets
from model.checkpoint.load import check_tensors
from model.checkpoint.reader import Checkpoint
from model.config import ModelConfig
from model.errors import ConfigError
from model.gemma3n import Gemma3n
from model.processor.tokenizer import Tokenizer
from model.slicing.spec import SliceSpec
from recipes.build import build_model, build_rows, build_tokenizer, find_checkpoint, find_config, resolve_sizes
from recipes.program import start
from recipes.schema import TrainRecipe
from trainer.checkpoint import WEIGHTS, Run
from trainer.config import Precision
from trainer.data.loader import Loader
from trainer.data.sources import DataConfig, LongRows, fingerprint
from trainer.data.supervise import TokenRow, TokenRows
from trainer.elastic import SliceSampler
from trainer.loop import Trainer
from trainer.optim import build_optimizer
from trainer.runtime import start as start_processes
from trainer.schedule import Schedule
from trainer.sinks import open_sinks
from trainer.weights import Weights, adapter_weights, model_weights


@dataclass(frozen=True)
class Prepared:
    """All that is known of a run without reading weights: checked, cheap, and in the order it is checked in."""

    checkpoint: Path | None
    config: ModelConfig
    tokenizer: Tokenizer
    schedule: Schedule
    sampler: SliceSampler
    evaluated: list[SliceSpec]
    train: TokenRows
    validation: list[TokenRow]


def run(recipe: TrainRecipe) -> None:
    """Train, and leave the newest weights in ``weights`` in the run's directory."""
    prepared = prepare(recipe)
    accelerator = start_processes(recipe.trainer, may_skip_layers=prepared.sampler.may_skip_layers)
    described = identity(recipe, prepared)
    directory = Run(
        recipe.trainer.output, described,
        keep=recipe.trainer.keep_checkpoints, resume=recipe.trainer.resume, accelerator=accelerator,
    )  # fmt: skip
    model, weights = build_trained(recipe, prepared)
    console = Console(stderr=True)
    state = Trainer(
        config=recipe.trainer,
        accelerator=accelerator,
        model=model,
        weights=weights,
        optimizer=build_optimizer(model, recipe.optim),
        schedule=prepared.schedule,
        sampler=prepared.sampler,
        loader=Loader(
            prepared.train.rows, batch_size=recipe.trainer.batch_size, seed=recipe.trainer.seed,
            pad_id=prepared.tokenizer.pad_id, shuffle=recipe.data.shuffle,
        ),
        validation=prepared.validation,
        evaluated=prepared.evaluated,
        run=directory,
        sinks=open_sinks(recipe.trainer, directory, console=console, settings=described),
    ).fit()  # fmt: skip
    if accelerator.is_main_process:
        newest = link_weights(directory, state.step)
        print(f"{'adapter' if recipe.adapter else 'model'} after {state.step} steps: {newest}")


def prepare(recipe: TrainRecipe) -> Prepared:
    """Check everything that can be checked without weights.

    Raises:
        MatsliceError: Something asked for cannot be done.
    """
    if recipe.adapter is None and recipe.trainer.precision is not Precision.fp32:
        raise ConfigError(
            f"trainer.precision is {recipe.trainer.precision}, but without an adapter the weights themselves are"
            " trained, and small updates would be rounded away; set trainer.precision=fp32, or choose an adapter"
        )
    checkpoint = None if recipe.checkpoint is None else find_checkpoint(recipe.checkpoint)
    config = find_config(checkpoint, recipe.model)
    sampler = SliceSampler(recipe.elastic, config.text, seed=recipe.trainer.seed)
    evaluated = resolve_sizes(recipe.sizes, config.text)
    schedule = Schedule(
        config=recipe.schedule, learning_rate=recipe.optim.learning_rate, max_steps=recipe.trainer.max_steps
    )  # fmt: skip
    tokenizer = build_tokenizer(recipe.tokenizer, checkpoint, config.text)
    if checkpoint is not None:
        check_tensors(Checkpoint.open(checkpoint))
    if recipe.adapter is not None:
        resolve_targets(Gemma3n.build(config, device="meta"), recipe.adapter.targets)
    train, validation = read_data(recipe.data, tokenizer, config)
    return Prepared(checkpoint, config, tokenizer, schedule, sampler, evaluated, train, validation)


def read_data(data: DataConfig, tokenizer: Tokenizer, config: ModelConfig) -> tuple[TokenRows, list[TokenRow]]:
    """Rows to learn from, and rows to be measured on."""
    train = build_rows(
        data.train, tokenizer, config.text, max_length_tokens=data.max_length_tokens, long_rows=data.long_rows
    )  # fmt: skip
    if not data.validation:
        return train, []
    # What is measured must not depend on a limit for training: too long is an error here, never left out.
    validation = build_rows(
        data.validation, tokenizer, config.text,
        max_length_tokens=data.max_length_tokens, long_rows=LongRows.refuse,
    )  # fmt: skip
    return train, validation.rows[: data.max_validation_examples]


def identity(recipe: TrainRecipe, prepared: Prepared) -> dict[str, Any]:
    """What decides the numbers of a run: its configs, its data, the weights it starts from."""
    start_weights = None if prepared.checkpoint is None else Checkpoint.open(prepared.checkpoint).file_hashes()
    return {
        "model": dataclasses.asdict(prepared.config.text),
        "base": start_weights,
        "adapter": None if recipe.adapter is None else dataclasses.asdict(recipe.adapter),
        "specs": [dataclasses.asdict(spec) for spec in prepared.sampler.levels],
        "elastic": {"policy": recipe.elastic.policy, "probabilities": recipe.elastic.probabilities},
        "optim": dataclasses.asdict(recipe.optim),
        "schedule": dataclasses.asdict(recipe.schedule),
        "trainer": recipe.trainer.identity,
        "data": {
            "train": fingerprint(recipe.data.train), "rows": len(prepared.train.rows), "shuffle": recipe.data.shuffle,
        },
        "tokenizer": prepared.tokenizer.fingerprint,
    }  # fmt: skip


def build_trained(recipe: TrainRecipe, prepared: Prepared) -> tuple[nn.Module, Weights]:
    """What is trained, and how it gets to disk and back."""
    precision, seed = recipe.trainer.precision, recipe.trainer.seed
    gemma = build_model(prepared.config, prepared.checkpoint, dtype=precision.dtype, seed=seed)
    gemma.recompute_layers = recipe.trainer.recompute_layers
    if recipe.adapter is None:
        return gemma, model_weights(gemma, extras=prepared.tokenizer.write)
    adapted = attach(gemma, recipe.adapter)
    return adapted, adapter_weights(adapted)


def link_weights(directory: Run, step: int) -> Path:
    """Point ``weights`` in the run's directory to those of its newest checkpoint."""
    link = directory.directory / WEIGHTS
    aside = link.with_name(f".{WEIGHTS}.new")
    aside.unlink(missing_ok=True)
    os.symlink((directory.path(step) / WEIGHTS).relative_to(directory.directory), aside, target_is_directory=True)
    os.replace(aside, link)
    return link


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("train", run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
