# SPDX-License-Identifier: Apache-2.0
"""What a training run is made of, checked before any weights are read: config, model, rows, media."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain

from rich.console import Console

from model.adapter.lora import attach, targets_of
from model.adapter.targets import DECODER
from model.checkpoint.checking import check_tensors
from model.checkpoint.names import PER_LAYER_TABLE, modality_of
from model.checkpoint.reader import Checkpoint
from model.config import ModelConfig
from model.errors import ConfigError
from model.freezing import freeze
from model.gemma3n import Gemma3n
from model.layers.embedding import TablePlacement
from model.processor.processor import Processor
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from recipes.build import build_processor, find_config, refuse_beyond_positions, without_idle_towers
from recipes.locate import find_checkpoint
from recipes.output import check_directory
from recipes.sizes import resolve_sizes
from recipes.train_recipe import Prepared, TrainRecipe
from recipes.train_stream import open_stream, refuse_counting, tell_what_was_checked
from trainer.compiling import refuse_uncompilable
from trainer.config import Precision, TrainerConfig
from trainer.data.collate import Collator
from trainer.data.config import DataConfig
from trainer.data.dataset import read_rows, validation_rows
from trainer.data.inspection import Digests, inspect, without_damage
from trainer.data.loader import Loader
from trainer.data.pack import Packs, pack_rows
from trainer.data.stream import StreamLoader
from trainer.data.supervise import TokenRow, TokenRows
from trainer.elastic import SliceSampler
from trainer.optim import ROUNDING, refuse_absent, refuse_unusable
from trainer.runtime import (
    is_first_launched,
    num_launched,
    refuse_environment,
    refuse_undivided,
    refuse_unlike_zero,
    rows_per_step,
)
from trainer.schedule import Schedule
from trainer.soft_token_cache import make_directory
from trainer.tensorboard import check_installed

TOWERS = ("model.vision_tower.", "model.audio_tower.")


def prepare(recipe: TrainRecipe) -> Prepared:
    """Check everything that can be checked without weights.

    Raises:
        MatsliceError: Something asked for cannot be done.
    """
    check_directory(recipe.trainer.output, key="trainer.output")
    if recipe.data.streaming:
        refuse_counting(recipe.trainer)
    refuse_environment()
    refuse_uncompilable(recipe.trainer)
    if recipe.trainer.tensorboard:
        check_installed()
    rounded_away = recipe.trainer.precision is not Precision.fp32 and recipe.optim.name not in ROUNDING
    if recipe.adapter is None and rounded_away:
        raise ConfigError(
            f"trainer.precision is {recipe.trainer.precision}, but without an adapter the weights themselves are"
            " trained, and small updates would be rounded away; set trainer.precision=fp32, or"
            " optim=adamw_bf16_states, or choose an adapter"
        )
    refuse_absent(recipe.optim)
    refuse_undivided(recipe.optim.name)
    checkpoint = None if recipe.checkpoint is None else find_checkpoint(recipe.checkpoint)
    config = find_config(checkpoint, recipe.model)
    if recipe.modalities is not None:
        config = config.only(recipe.modalities)
    sampler = SliceSampler(recipe.elastic, config.text, seed=recipe.trainer.seed)
    evaluated = resolve_sizes(recipe.sizes, config.text)
    if recipe.trainer.max_steps is not None:  # what is wrong with it is told before data is read, if it can be
        build_schedule(recipe, recipe.trainer)
    processor = build_processor(recipe.tokenizer, checkpoint, config, long_audio=recipe.data.long_audio)
    if checkpoint is not None:
        check_tensors(Checkpoint.open(checkpoint), config.modalities)
    trained = trained_names(recipe, config)
    refuse_trained_table(recipe, trained)
    trains_media = not all(name.startswith(DECODER) for name in trained)
    refuse_unlike_zero(recipe.trainer, may_leave_unused=sampler.may_skip_layers or trains_media)
    stream = open_stream(recipe, processor) if recipe.data.streaming else None
    train, validation = read_data(recipe.data, processor, seed=recipe.trainer.seed, stream=stream)
    refuse_watching_nothing(recipe.trainer, validation, evaluated)
    idle = refuse_idle_training(recipe, trained, train)
    if stream is None:
        train, validation, digests = look_at_media(recipe.data, train, validation)
        loader, packs = load(recipe, processor, train)
        trainer = recipe.trainer.with_steps(1 / loader.epoch(rows_per_step(recipe.trainer, num_launched())))
    else:
        _, validation, digests = look_at_media(recipe.data, TokenRows([], [], 0), validation)
        digests |= stream.block(0).reading.digests
        loader, packs, trainer = stream, None, recipe.trainer
        tell_what_was_checked(recipe.data, stream, [one for one in config.modalities if one is not Modality.text])
    schedule = build_schedule(recipe, trainer)
    loaded = config
    # A model is saved whole, an adapter without its base. What rows of a stream will need is not known.
    if recipe.adapter is not None and checkpoint is not None and packs is not None:
        every = (row.ids for row in rows_of(train, validation))
        loaded = without_idle_towers(config, every, adapted=map(modality_of, trained))
    return Prepared(
        checkpoint, config, loaded, processor, trainer, schedule, loader, packs, sampler, evaluated, train, validation,
        trains_media, idle, digests,
    )  # fmt: skip


def load(recipe: TrainRecipe, processor: Processor, train: TokenRows) -> tuple[Loader, Packs]:
    """What gives batches of rows that are all there, and the packs that these lie in."""
    data, config = recipe.data, recipe.trainer
    packs = pack_rows(train.rows, budget=data.pack_budget, seed=config.seed, shuffle=data.shuffle)
    loader = Loader(
        train.rows, batch_size=config.batch_size, seed=config.seed,
        collator=Collator(processor.tokenizer.pad_id, processor), shuffle=data.shuffle, packs=packs,
    )  # fmt: skip
    return loader, packs


def rows_of(train: TokenRows, validation: TokenRows | None) -> Iterator[TokenRow]:
    """All rows, one at a time: those on disk are in memory only while they are looked at."""
    return chain(train.rows, () if validation is None else validation.rows)


def build_schedule(recipe: TrainRecipe, trainer: TrainerConfig) -> Schedule:
    """The learning rate of every step."""
    return Schedule(config=recipe.schedule, learning_rate=recipe.optim.learning_rate, max_steps=trainer.num_steps)


def refuse_watching_nothing(
    trainer: TrainerConfig, validation: TokenRows | None, evaluated: Sequence[SliceSpec]
) -> None:
    """Raise ConfigError if something hangs on a validation loss that nobody measures."""
    wishes = {"early_stopping": trainer.early_stopping.patience is not None, "keep_best": trainer.keep_best}
    for key in (key for key, wish in wishes.items() if wish):
        if validation is None or not validation.rows:
            raise ConfigError(
                f"trainer.{key} needs a validation loss, but there are no rows to measure on; give data.validation or"
                " data.held_out"
            )
        if trainer.eval_every is None:
            raise ConfigError(
                f"trainer.{key} needs validation losses on the way, but trainer.eval_every is null, which measures"
                " after the last step alone; give it a number of steps"
            )
    names = [spec.name for spec in evaluated]
    if trainer.monitor is not None and trainer.monitor not in names:
        raise ConfigError(f"trainer.monitor is '{trainer.monitor}'; measured are {', '.join(names)} (sizes)")


def trained_names(recipe: TrainRecipe, config: ModelConfig) -> list[str]:
    """What is trained: parameters, or modules that an adapter is put on.

    Raises:
        ConfigError: A target of the adapter, or a part to freeze, is not there; or both are given; or the optimizer
            has a group without parameters; or what a tower makes of its media is to be kept, but the tower is trained.
    """
    empty = Gemma3n.build(config, device="meta")
    if recipe.adapter is not None:
        if recipe.freeze or recipe.freeze_matching:
            raise ConfigError(
                "freeze: an adapter's base is frozen anyway; leave freeze out, and choose with adapter.targets where"
                " the adapter sits"
            )
        trained = targets_of(empty, recipe.adapter)
    else:
        freeze(empty, recipe.freeze, recipe.freeze_matching)
        trained = [name for name, parameter in empty.named_parameters() if parameter.requires_grad]
    if recipe.adapter is None:
        refuse_unusable(empty, recipe.optim)
    elif recipe.optim.groups or recipe.optim.lora_plus_ratio is not None:  # else no need to wait for the factors
        refuse_unusable(attach(empty, recipe.adapter), recipe.optim)
    towers = [name for name in trained if name.startswith(TOWERS)]
    if recipe.data.soft_token_cache is not None and towers:
        raise ConfigError(
            f"data.soft_token_cache is set, but a tower is trained ('{towers[0]}'), and what it makes of images or"
            " sound changes with every step; leave the cache out, or freeze the towers (freeze=[vision,audio], or an"
            " adapter without them)"
        )
    return trained


def refuse_trained_table(recipe: TrainRecipe, trained: Sequence[str]) -> None:
    """Raise ConfigError if the per-layer table shall not be on the device, but is trained, or is in no checkpoint."""
    wish = recipe.trainer.per_layer_table
    if wish is TablePlacement.device:
        return
    if recipe.checkpoint is None:
        raise ConfigError(
            f"trainer.per_layer_table is {wish}, but the model is drawn anew, its table too; give checkpoint=, or set"
            " trainer.per_layer_table=device"
        )
    module = PER_LAYER_TABLE.removesuffix(".weight")
    if found := [name for name in trained if name in (module, PER_LAYER_TABLE)]:
        raise ConfigError(
            f"trainer.per_layer_table is {wish}, but '{found[0]}' is trained, and a table that is not on the device"
            " cannot be; set trainer.per_layer_table=device, or train an adapter without it, or freeze=[text]"
        )


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
    if len(idle) == len(asked) and not recipe.data.streaming:  # else rows with media may come
        raise ConfigError(" ".join(f"{idle_training(recipe, modality)}." for modality in idle) + " Nothing is learnt.")
    return idle


def idle_training(recipe: TrainRecipe, modality: Modality) -> str:
    """That no row has the medium of what is trained, and what to do."""
    medium = "images" if modality is Modality.vision else "sound"
    setting = (
        f"freeze=[{', '.join(recipe.freeze)}] leaves" if recipe.adapter is None
        else f"adapter.targets=[{', '.join(recipe.adapter.targets)}] has"
    )  # fmt: skip
    if recipe.data.streaming:
        return (
            f"{setting} what takes in {medium} to be trained, but none of the first rows of data.train"
            f" ({recipe.data.learnt_from}) has {medium}; it stays as it is until one comes"
        )
    return (
        f"{setting} what takes in {medium} to be trained, but no row of data.train ({recipe.data.learnt_from})"
        f" has {medium}, so it stays as it is; give rows with {medium}, or train something else"
    )


def read_data(
    data: DataConfig, processor: Processor, *, seed: int, stream: StreamLoader | None
) -> tuple[TokenRows, TokenRows | None]:
    """Rows to learn from, of a stream its first, and rows to be measured on, if there are any.

    Args:
        data: What the user says.
        processor: That of the model.
        seed: Draws shares of sources.
        stream: What reads rows while training, where it does.
    """
    if stream is None:
        train, validation = read_rows(data, processor, seed=seed)
    else:  # which has been told of what is wrong with its rows, and tells it
        train, validation = None, stream.rows.held_out_rows or validation_rows(data, processor)
    for found in (train, validation):
        if found is None:
            continue
        refuse_beyond_positions(found.rows, processor.config.text)
        if found.num_bad and is_first_launched():
            told = "\n".join(["", *found.faults])
            print(f"data: leaves out {found.num_bad} rows that cannot be used (data.on_bad_row){told}", file=sys.stderr)
    if train is None:
        assert stream is not None
        train = stream.block(0).reading.found
    return train, validation


def look_at_media(
    data: DataConfig, train: TokenRows, validation: TokenRows | None
) -> tuple[TokenRows, TokenRows | None, Digests]:
    """The rows without those whose media are damaged, if such may be skipped, and the digests of all media.

    Before that, whether something can be kept of them. In every process, and before they join: what joins them waits
    for minutes, and media may take longer.
    """
    total = len(train.rows) + (len(validation.rows) if validation else 0)
    rows = [row for row in rows_of(train, validation) if row.media]  # others may be on disk, and stay there
    if data.soft_token_cache is not None and rows:
        make_directory(data.soft_token_cache, key="data.soft_token_cache")
    digests = inspect(
        rows, data.check_media, console=Console(stderr=True), on_bad_row=data.on_bad_row, total=total
    )  # fmt: skip
    return without_damage(train, digests), validation and without_damage(validation, digests), digests
