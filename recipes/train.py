# SPDX-License-Identifier: Apache-2.0
"""Train a model, or an adapter on it. Everything that can be refused is refused before weights are read."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
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
from recipes.output import check_run_directory
from recipes.program import start
from recipes.schema import TrainRecipe
from trainer.checkpoint import WEIGHTS, Run, write_whole
from trainer.config import Precision
from trainer.data.loader import Loader
from trainer.data.sources import DataConfig, fingerprint
from trainer.data.supervise import TokenRows
from trainer.elastic import SliceSampler
from trainer.loop import Trainer
from trainer.metrics import Record
from trainer.optim import build_optimizer
from trainer.runtime import rows_per_step
from trainer.runtime import start as start_processes
from trainer.schedule import Schedule
from trainer.sinks import Sink, open_sinks
from trainer.weights import Weights, adapter_weights, model_weights

CONFIG_FILE = "config.yaml"  # in the directory of the run


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
    validation: TokenRows | None


def run(recipe: TrainRecipe) -> None:
    """Train; the newest weights are always in ``weights`` in the run's directory."""
    prepared = prepare(recipe)
    accelerator = start_processes(recipe.trainer, may_skip_layers=prepared.sampler.may_skip_layers)
    described = identity(recipe, prepared)
    directory = Run(
        recipe.trainer, described, accelerator=accelerator, told={"data.train": ", ".join(recipe.data.train)}
    )
    if accelerator.is_main_process:
        write_whole(recipe.trainer.output / CONFIG_FILE, written_out(recipe))
    sinks = open_sinks(recipe.trainer, directory, console=Console(stderr=True), settings=described)
    with closed_on_failure(sinks):
        model, weights = build_trained(recipe, prepared)
    begun = start_record(prepared, model, step=directory.resumed_step)
    begun["steps_per_epoch"] = begun["train_rows"] / rows_per_step(recipe.trainer, accelerator)
    for sink in sinks:
        sink.write(begun)
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
        validation=[] if prepared.validation is None else prepared.validation.rows,
        evaluated=prepared.evaluated,
        run=directory,
        sinks=sinks,
    ).fit()  # fmt: skip
    if accelerator.is_main_process:
        kind = "adapter" if recipe.adapter else "model"
        print(f"{kind} after {state.step} steps: {directory.directory / WEIGHTS}")


def prepare(recipe: TrainRecipe) -> Prepared:
    """Check everything that can be checked without weights.

    Raises:
        MatsliceError: Something asked for cannot be done.
    """
    check_run_directory(recipe.trainer.output)
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


def read_data(data: DataConfig, tokenizer: Tokenizer, config: ModelConfig) -> tuple[TokenRows, TokenRows | None]:
    """Rows to learn from, and rows to be measured on, if there are any."""
    train = build_rows(
        data.train, tokenizer, config.text, max_length_tokens=data.max_length_tokens, long_rows=data.long_rows
    )  # fmt: skip
    if not data.validation:
        return train, None
    validation = build_rows(
        data.validation, tokenizer, config.text, max_length_tokens=data.max_length_tokens, long_rows=data.long_rows
    )  # fmt: skip
    return train, dataclasses.replace(validation, rows=validation.rows[: data.max_validation_examples])


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


@contextmanager
def closed_on_failure(sinks: Sequence[Sink]) -> Iterator[None]:
    """Close what would otherwise be closed at the end of training, which is not going to be."""
    try:
        yield
    except BaseException:
        for sink in sinks:
            sink.close()
        raise


def start_record(prepared: Prepared, model: nn.Module, *, step: int) -> Record:
    """What a run is made of, as a record; ``step`` is the one it goes on from."""
    parameters = list(model.parameters())
    validation = prepared.validation
    return {
        "kind": "start",
        "step": step,
        "train_rows": len(prepared.train.rows),
        "train_rows_skipped": prepared.train.num_skipped,
        "validation_rows": 0 if validation is None else len(validation.rows),
        "validation_rows_skipped": 0 if validation is None else validation.num_skipped,
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
        "specs": [spec.name for spec in prepared.sampler.levels],
    }


def written_out(recipe: TrainRecipe) -> str:
    """Every value of a recipe as YAML, under the command line and the versions it was last run with."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "peft"))
    told = [f"# {shlex.join(sys.argv)}", f"# Python {platform.python_version()}, {packages}"]
    return "\n".join([*told, OmegaConf.to_yaml(OmegaConf.structured(recipe))])


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("train", run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
