# SPDX-License-Identifier: Apache-2.0
"""From what a person wrote to finished parts: one function per part, and the only place where choices are made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from model.adapter.lora import PeftModel, check_adapter, load_adapter
from model.adapter.lora import merge as merge_adapter
from model.checkpoint.load import load
from model.checkpoint.reader import Checkpoint
from model.config import ModelConfig, TextConfig
from model.errors import ConfigError, InputError
from model.gemma3n import Gemma3n
from model.layers.embedding import TablePlacement
from model.processor.audio import LongAudio
from model.processor.processor import Processor
from model.processor.settings import as_json
from model.tower_config import Modality
from recipes.shape import ShapeConfig
from trainer.config import Device
from trainer.data.config import DataConfig, LongRows
from trainer.data.dataset import Told, rows_of
from trainer.data.faults import MEND
from trainer.data.lengths import lengths_of
from trainer.data.sources import Source
from trainer.data.supervise import TRAINING_REMEDY, TokenRow, TokenRows
from trainer.soft_token_cache import SoftTokenCache


def find_config(checkpoint: Path | None, shape: ShapeConfig | None) -> ModelConfig:
    """The config of the model to work on: the checkpoint's, which must have ``shape`` if one is given; or ``shape``.

    Raises:
        ConfigError: Neither is given, or the two differ.
    """
    if checkpoint is None:
        if shape is None:
            raise ConfigError(
                "train: neither checkpoint nor model is given; checkpoint=DIRECTORY goes on from weights,"
                " model=tiny (or another of conf/model) with tokenizer=DIRECTORY begins from none"
            )
        return shape.to_model_config()
    config = ModelConfig.read(checkpoint)
    if shape is not None:
        shape.check(config, str(checkpoint))
    return config


def without_idle_towers(
    config: ModelConfig, rows: Iterable[Int[Tensor, " seq"]], *, adapted: Iterable[Modality] = ()
) -> ModelConfig:
    """The config without the towers that none of ``rows`` needs, and that no adapter changes.

    A row needs a tower if it has an id of the tower's vocabulary, as the placeholders of every medium are.
    """
    wanted = set(adapted)
    towers = {Modality.vision: config.vision, Modality.audio: config.audio}
    for row in rows:
        idle = [(medium, tower) for medium, tower in towers.items() if tower is not None and medium not in wanted]
        wanted |= {
            medium for medium, tower in idle if ((row >= tower.ids.start) & (row < tower.ids.stop)).any()
        }  # fmt: skip
    return config.only(wanted)


def build_model(
    config: ModelConfig,
    checkpoint: Path | None,
    *,
    dtype: torch.dtype,
    seed: int,
    per_layer_table: TablePlacement = TablePlacement.device,
) -> Gemma3n:
    """The model: with the checkpoint's weights, or with weights drawn from ``seed`` if there is none.

    Towers that ``config`` does not have are left on disk. Only a checkpoint's table can be left off the device.
    """
    if checkpoint is not None:
        return load(checkpoint, dtype=dtype, modalities=config.modalities, per_layer_table=per_layer_table)
    assert per_layer_table is TablePlacement.device
    gemma = Gemma3n.build(config, dtype=dtype)
    gemma.initialize(seed)
    return gemma


def build_adapted(
    checkpoint: Path,
    adapter: Path | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    modalities: Sequence[Modality] | None = None,
    per_layer_table: TablePlacement = TablePlacement.device,
    merge: bool = False,
) -> Gemma3n | PeftModel:
    """A model to ask, with its adapter if it has one; ``modalities`` are those to load, all by default."""
    gemma = load(checkpoint, dtype=dtype, device=device, modalities=modalities, per_layer_table=per_layer_table)
    return with_adapter(gemma, adapter, merge=merge)


def with_adapter(gemma: Gemma3n, adapter: Path | None, *, merge: bool) -> Gemma3n | PeftModel:
    """The model with an adapter, if there is one: beside its weights, or folded into them (``merge``)."""
    if adapter is None:
        return gemma
    adapted = load_adapter(gemma, adapter)
    return merge_adapter(adapted) if merge else adapted


def towers_of_adapter(
    config: ModelConfig, adapter: Path | None, *, merge: bool, per_layer_table: TablePlacement = TablePlacement.device
) -> frozenset[Modality]:
    """The towers that an adapter changes, and text where it changes that; of none where there is no adapter.

    Raises:
        CheckpointError: The adapter cannot be used so; found before any weight is read.
    """
    if adapter is None:
        return frozenset()
    return check_adapter(config, adapter, table=per_layer_table, merged=merge)


def fingerprint_of(checkpoint: Path, adapter: Path | None) -> str:
    """Of a model: its weights, its config as it is read, and the adapter's files where there is one."""
    opened = Checkpoint.open(checkpoint)
    digest = hashlib.sha256(f"{opened.fingerprint()} {json.dumps(config_record(opened.config))}".encode())
    if adapter is None:
        return digest.hexdigest()
    for path in sorted(adapter.glob("adapter_*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def config_record(config: ModelConfig) -> dict[str, Any]:
    """What a model computes by, as JSON values: not as it is written, and without what nothing computes by."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.compare}
    parts = {name: None if part is None else dataclasses.asdict(part) for name, part in values.items()}
    return json.loads(json.dumps(parts, default=str, sort_keys=True))


def media_record(processor: Processor, modalities: Iterable[Modality]) -> dict[str, Any]:
    """How images and sound are prepared, as JSON values, of those media that are among the modalities."""
    prepared = {Modality.vision: processor.images, Modality.audio: processor.audio}
    wanted = set(modalities)
    return {
        medium.value: json.loads(json.dumps(as_json(own.settings)))
        for medium, own in prepared.items() if own is not None and medium in wanted
    }  # fmt: skip


def build_cache(
    directory: Path | None, gemma: Gemma3n, processor: Processor, device: torch.device
) -> SoftTokenCache | None:
    """Where soft tokens of the model's towers are kept, if they are to be, and the model has any."""
    if directory is None or not gemma.config.is_multimodal:
        return None
    return SoftTokenCache.of(directory, gemma, processor, device)


def find_device(written: Device) -> torch.device:
    """The device to compute on outside of training."""
    return torch.device("cuda" if written is Device.auto and torch.cuda.is_available() else "cpu")


def build_processor(
    directory: Path | None,
    checkpoint: Path | None,
    config: ModelConfig,
    *,
    long_audio: LongAudio = LongAudio.refuse,
    long_audio_key: str = "data.long_audio",
) -> Processor:
    """Tokenizer and preparation of media from ``directory``, or the checkpoint's; ``long_audio_key`` is the recipe's.

    Raises:
        ConfigError: There is neither, or a file says what Gemma 3n cannot do.
        CheckpointError: The tokenizer is not that of the model.
    """
    source = directory or checkpoint
    if source is None:
        raise ConfigError("train: a model without checkpoint= needs a tokenizer; give tokenizer=DIRECTORY")
    return Processor.read(source, config, long_audio=long_audio, long_audio_key=long_audio_key)


def build_rows(
    files: Sequence[str],
    processor: Processor,
    *,
    max_length_tokens: int,
    long_rows: LongRows,
    remedy: str = TRAINING_REMEDY,
    token_cache: Path | None = None,
) -> TokenRows:
    """The rows of ``files``, or other sources, as tokens; ``remedy`` is what to do about one that is too long.

    Raises:
        InputError: A file or a row cannot be used.
        ConfigError: Rows are to be kept in ``token_cache``, and cannot be.
    """
    data = DataConfig(
        train=list(files), max_length_tokens=max_length_tokens, long_rows=long_rows, token_cache=token_cache
    )  # fmt: skip
    told = Told(long=remedy, bad=MEND, cache="token_cache")
    found = rows_of([Source(file) for file in files], data, processor, told).found
    refuse_beyond_positions(found.rows, processor.config.text)
    return found


def refuse_beyond_positions(rows: Sequence[TokenRow], config: TextConfig) -> None:
    """Raise InputError for the first row that the model has no positions for."""
    most = config.max_position_embeddings
    beyond = next((place for place, length in enumerate(lengths_of(rows).tolist()) if length > most), None)
    if beyond is not None:
        row = rows[beyond]
        raise InputError(
            f"{row.where}: {len(row.ids)} tokens, but the model has {most} positions"
            " (max_position_embeddings); shorten the row, or leave it out with a lower max_length_tokens"
        )
