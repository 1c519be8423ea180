# SPDX-License-Identifier: Apache-2.0
"""Train a model, or an adapter on it. Everything that can be refused is refused before weights are read."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import ne
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from model.adapter.lora import AdapterConfig, PeftModel, attach
from model.adapter.targets import DECODER, resolve_targets
from model.checkpoint.checking import check_tensors
from model.checkpoint.names import modality_of
from model.checkpoint.reader import Checkpoint
from model.config import ModelConfig
from model.errors import ConfigError
from model.freezing import Part, freeze, modules_of
from model.gemma3n import Gemma3n
from model.processor.processor import Processor
from model.slicing.spec import SliceConfig, SliceSpec
from model.tower_config import Modality
from recipes.build import (
    build_cache,
    build_model,
    build_processor,
    build_rows,
    find_config,
    without_idle_towers,
)  # fmt: skip
from recipes.locate import find_checkpoint
from recipes.output import check_run_directory
from recipes.program import start
from recipes.run_identity import shape_of
from recipes.shape import ShapeConfig
from recipes.sizes import resolve_sizes
from trainer.checkpoint import WEIGHTS, Run, write_whole
from trainer.config import Precision, TrainerConfig
from trainer.data.collate import Collator
from trainer.data.config import DataConfig, LongRows
from trainer.data.inspection import Digests, inspect
from trainer.data.loader import Loader
from trainer.data.media import fingerprint_of_media
from trainer.data.sources import fingerprint
from trainer.data.supervise import TokenRow, TokenRows
from trainer.elastic import ElasticConfig, SliceSampler
from trainer.loop import Trainer
from trainer.metrics import Record
from trainer.optim import OptimConfig, build_optimizer
from trainer.runtime import rows_per_step
from trainer.runtime import start as start_processes
from trainer.schedule import Schedule, ScheduleConfig
from trainer.sinks import Sink, open_sinks
from trainer.soft_token_cache import make_directory
from trainer.soft_tokens import SharedTowers
from trainer.weights import Weights, adapter_weights, model_weights

TOWERS = ("model.vision_tower.", "model.audio_tower.")
CONFIG_FILE = "config.yaml"  # in the directory of the run


@dataclass(kw_only=True, slots=True)
class TrainRecipe:
    """Train a model, or an adapter on it, on conversations: elastically or at full size.

    Weights come from a checkpoint, or are drawn anew in the shape of ``model`` (which then needs a
    tokenizer); given both, the checkpoint must have that shape. Rows may hold images and sound where the
    model has towers for them.
    """

    data: DataConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    elastic: ElasticConfig
    sizes: dict[str, SliceConfig]  # sub-models to train, if elastic trains any, and to measure
    adapter: AdapterConfig | None = None  # null trains every weight
    model: ShapeConfig | None = None
    checkpoint: str | None = None  # directory or hub name of published weights
    tokenizer: Path | None = None  # directory, processor files included; null takes the checkpoint's
    modalities: list[Modality] | None = None  # towers to load, beside text; null = all there are
    freeze: list[Part] = field(default_factory=list)  # left untrained: text, vision, audio, embedders; adapter=none


@dataclass(frozen=True)
class Prepared:
    """All that is known of a run without reading weights: checked, cheap, and in the order it is checked in."""

    checkpoint: Path | None
    config: ModelConfig
    loaded: ModelConfig  # the same, without towers that are neither trained nor needed by a row
    processor: Processor
    schedule: Schedule
    sampler: SliceSampler
    evaluated: list[SliceSpec]
    train: TokenRows
    validation: TokenRows | None
    trains_media: bool  # whether a tower or an embedder is trained, which rows without media have no gradient for
    idle: list[Modality]  # what is trained, but has no row to learn from
    digests: Digests  # of all media; each is read for it once

    @property
    def has_media(self) -> bool:
        """Whether any row holds an image or sound."""
        kinds = (self.train,) if self.validation is None else (self.train, self.validation)
        return any(row.media for found in kinds for row in found.rows)


def run(recipe: TrainRecipe) -> None:
    """Train; the newest weights are always in ``weights`` in the run's directory."""
    prepared = prepare(recipe)
    may_leave_unused = prepared.sampler.may_skip_layers or prepared.trains_media
    accelerator = start_processes(recipe.trainer, may_leave_unused=may_leave_unused)
    # Only the first process compares it with what is there.
    described = identity(recipe, prepared) if accelerator.is_main_process else {}
    directory = Run(
        recipe.trainer, described, accelerator=accelerator, told={"data.train": ", ".join(recipe.data.train)}
    )
    if accelerator.is_main_process:
        write_whole(recipe.trainer.output / CONFIG_FILE, written_out(recipe))
        for modality in prepared.idle:
            print(f"warning: {idle_training(recipe, modality)}", file=sys.stderr)
    sinks = open_sinks(recipe.trainer, directory, console=Console(stderr=True), settings=described)
    with closed_on_failure(sinks):
        gemma, model, weights = build_trained(recipe, prepared)
    kept = recipe.data.soft_token_cache if prepared.has_media else None
    cache = build_cache(kept, gemma, prepared.processor, accelerator.device)
    if cache is not None:
        cache.digests.update(prepared.digests)
    begun = start_record(prepared, gemma, model, step=directory.resumed_step)
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
            collator=Collator(prepared.processor.tokenizer.pad_id, prepared.processor, cache),
            shuffle=recipe.data.shuffle,
        ),
        validation=[] if prepared.validation is None else prepared.validation.rows,
        evaluated=prepared.evaluated,
        run=directory,
        sinks=sinks,
        towers=SharedTowers(gemma, cache),
        workers=recipe.data.workers if prepared.has_media else 0,
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
    if recipe.modalities is not None:
        config = config.only(recipe.modalities)
    sampler = SliceSampler(recipe.elastic, config.text, seed=recipe.trainer.seed)
    evaluated = resolve_sizes(recipe.sizes, config.text)
    schedule = Schedule(
        config=recipe.schedule, learning_rate=recipe.optim.learning_rate, max_steps=recipe.trainer.max_steps
    )  # fmt: skip
    processor = build_processor(recipe.tokenizer, checkpoint, config, long_audio=recipe.data.long_audio)
    if checkpoint is not None:
        check_tensors(Checkpoint.open(checkpoint), config.modalities)
    trained = trained_names(recipe, config)
    trains_media = not all(name.startswith(DECODER) for name in trained)
    train, validation = read_data(recipe.data, processor)
    idle = refuse_idle_training(recipe, trained, train)
    every = [*train.rows, *(validation.rows if validation else ())]
    digests = look_at_media(recipe.data, every)
    loaded = config
    if recipe.adapter is not None and checkpoint is not None:  # a model is saved whole, an adapter without its base
        loaded = without_idle_towers(config, (row.ids for row in every), adapted=map(modality_of, trained))
    return Prepared(
        checkpoint, config, loaded, processor, schedule, sampler, evaluated, train, validation, trains_media, idle,
        digests,
    )  # fmt: skip


def trained_names(recipe: TrainRecipe, config: ModelConfig) -> list[str]:
    """What is trained: parameters, or modules that an adapter is put on.

    Raises:
        ConfigError: A target of the adapter, or a part to freeze, is not there; or both are given; or what a tower
            makes of its media is to be kept, but the tower is trained.
    """
    empty = Gemma3n.build(config, device="meta")
    if recipe.adapter is not None:
        if recipe.freeze:
            raise ConfigError(
                "freeze: an adapter's base is frozen anyway; leave freeze out, and choose with adapter.targets where"
                " the adapter sits"
            )
        trained = resolve_targets(empty, recipe.adapter.targets)
    else:
        freeze(empty, recipe.freeze)
        trained = [name for name, parameter in empty.named_parameters() if parameter.requires_grad]
    towers = [name for name in trained if name.startswith(TOWERS)]
    if recipe.data.soft_token_cache is not None and towers:
        raise ConfigError(
            f"data.soft_token_cache is set, but a tower is trained ('{towers[0]}'), and what it makes of images or"
            " sound changes with every step; leave the cache out, or freeze the towers (freeze=[vision,audio], or an"
            " adapter without them)"
        )
    return trained


def refuse_idle_training(recipe: TrainRecipe, trained: Sequence[str], found: TokenRows) -> list[Modality]:
    """What is trained although no row to learn from has anything of it.

    Raises:
        ConfigError: That is all there is.
    """
    learnt = {
        Modality.text: True,
        Modality.vision: any(row.pictures for row in found.rows),
        Modality.audio: any(row.recordings for row in found.rows),
    }
    asked = {modality_of(name) for name in trained}
    idle = [modality for modality, has_rows in learnt.items() if modality in asked and not has_rows]
    if len(idle) == len(asked):
        raise ConfigError(" ".join(f"{idle_training(recipe, modality)}." for modality in idle) + " Nothing is learnt.")
    return idle


def idle_training(recipe: TrainRecipe, modality: Modality) -> str:
    """That no row has the medium of what is trained, and what to do."""
    medium = "images" if modality is Modality.vision else "sound"
    setting = (
        f"freeze=[{', '.join(recipe.freeze)}] leaves" if recipe.adapter is None
        else f"adapter.targets=[{', '.join(recipe.adapter.targets)}] has"
    )  # fmt: skip
    return (
        f"{setting} what takes in {medium} to be trained, but no row of data.train ({', '.join(recipe.data.train)})"
        f" has {medium}, so it stays as it is; give rows with {medium}, or train something else"
    )


def read_data(data: DataConfig, processor: Processor) -> tuple[TokenRows, TokenRows | None]:
    """Rows to learn from, and rows to be measured on, if there are any."""
    train = build_rows(
        data.train, processor, max_length_tokens=data.max_length_tokens, long_rows=data.long_rows
    )  # fmt: skip
    if not data.validation:
        return train, None
    validation = build_rows(
        data.validation, processor, max_length_tokens=data.max_length_tokens, long_rows=data.long_rows
    )  # fmt: skip
    most = data.max_validation_examples
    return train, dataclasses.replace(validation, rows=validation.rows[:most], examples=validation.examples[:most])


def look_at_media(data: DataConfig, rows: Sequence[TokenRow]) -> Digests:
    """The digests of all media; before that, whether something can be kept of them.

    In every process, and before they join: what joins them waits for minutes, and media may take longer.
    """
    if data.soft_token_cache is not None and any(row.media for row in rows):
        make_directory(data.soft_token_cache, key="data.soft_token_cache")
    return inspect(rows, data.check_media, console=Console(stderr=True))


def identity(recipe: TrainRecipe, prepared: Prepared) -> dict[str, Any]:
    """What decides the numbers of a run: its configs, its data, the weights it starts from."""
    start_weights = None if prepared.checkpoint is None else Checkpoint.open(prepared.checkpoint).fingerprint()
    return {
        **shape_of(prepared.config),
        "freeze": sorted(recipe.freeze),
        "base": start_weights,
        "adapter": None if recipe.adapter is None else dataclasses.asdict(recipe.adapter),
        "specs": [dataclasses.asdict(spec) for spec in prepared.sampler.levels],
        "elastic": {"policy": recipe.elastic.policy, "probabilities": recipe.elastic.probabilities},
        "optim": dataclasses.asdict(recipe.optim),
        "schedule": dataclasses.asdict(recipe.schedule),
        "trainer": recipe.trainer.identity,
        "data": {
            "train": fingerprint(recipe.data.train), "rows": len(prepared.train.rows), "shuffle": recipe.data.shuffle,
            "cut_at_tokens": recipe.data.max_length_tokens if recipe.data.long_rows is LongRows.truncate else None,
            "long_audio": recipe.data.long_audio,
            "media": fingerprint_of_media(
                (medium for row in prepared.train.rows for medium in row.media), prepared.digests
            ),
        },
        "tokenizer": prepared.processor.tokenizer.fingerprint,
    }  # fmt: skip


def build_trained(recipe: TrainRecipe, prepared: Prepared) -> tuple[Gemma3n, Gemma3n | PeftModel, Weights]:
    """The model, the same with what is trained in it, and how that gets to disk and back."""
    precision, seed = recipe.trainer.precision, recipe.trainer.seed
    gemma = build_model(prepared.loaded, prepared.checkpoint, dtype=precision.dtype, seed=seed)
    gemma.recompute_layers = recipe.trainer.recompute_layers
    if recipe.adapter is None:
        freeze(gemma, recipe.freeze)
        return gemma, gemma, model_weights(gemma, extras=prepared.processor.write)
    adapted = attach(gemma, recipe.adapter)
    return gemma, adapted, adapter_weights(adapted)


@contextmanager
def closed_on_failure(sinks: Sequence[Sink]) -> Iterator[None]:
    """Close what would otherwise be closed at the end of training, which is not going to be."""
    try:
        yield
    except BaseException:
        for sink in sinks:
            sink.close()
        raise


def start_record(prepared: Prepared, gemma: Gemma3n, model: nn.Module, *, step: int) -> Record:
    """What a run is made of, as a record; ``step`` is the one it goes on from."""
    parameters = list(model.parameters())
    parts = {part: [p for module in modules_of(gemma, part) for p in module.parameters()] for part in Part}
    validation = prepared.validation or TokenRows([], [], 0)
    return {
        "kind": "start",
        "step": step,
        **rows_in_numbers("train", prepared.train),
        **rows_in_numbers("validation", validation),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        **{f"trainable_parameters/{part}": sum(p.numel() for p in parts[part] if p.requires_grad) for part in Part},
        "total_parameters": sum(p.numel() for p in parameters),
        "modalities": list(gemma.config.modalities),  # what is loaded
        "specs": [spec.name for spec in prepared.sampler.levels],
    }


def rows_in_numbers(name: str, found: TokenRows) -> Record:
    """How many rows there are, what is in them, and what became of those, and of recordings, that were too long."""
    given = [[sound for turn in example.messages for sound in turn.recordings] for example in found.examples]
    # A recording that is cut short leaves one clip, and of one that is cut into several no end goes.
    heard = zip(given, (row.recordings for row in found.rows), strict=True)
    return {
        f"{name}_rows": len(found.rows),
        f"{name}_rows_skipped": found.num_skipped,
        f"{name}_rows_truncated": found.num_truncated,
        f"{name}_rows_with_images": sum(bool(row.pictures) for row in found.rows),
        f"{name}_rows_with_audio": sum(bool(row.recordings) for row in found.rows),
        f"{name}_recordings": sum(map(len, given)),
        f"{name}_recordings_truncated": sum(
            sum(map(ne, wholes, clips)) for wholes, clips in heard if len(wholes) == len(clips)
        ),
        f"{name}_clips": sum(len(row.recordings) for row in found.rows),
    }


def written_out(recipe: TrainRecipe) -> str:
    """Every value of a recipe as YAML, under the command line and the versions it was last run with."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "peft"))
    told = [f"# {shlex.join(sys.argv)}", f"# Python {platform.python_version()}, {packages}"]
    return "\n".join([*told, OmegaConf.to_yaml(OmegaConf.structured(recipe))])


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("train", TrainRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
