# SPDX-License-Identifier: Apache-2.0
"""What ``matslice train`` can be told, and what is known of a run once that has been checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from model.adapter.lora import AdapterConfig
from model.config import ModelConfig
from model.freezing import Part
from model.processor.processor import Processor
from model.slicing.spec import SliceConfig, SliceSpec
from model.tower_config import Modality
from recipes.shape import ShapeConfig
from trainer.config import TrainerConfig
from trainer.data.config import DataConfig
from trainer.data.inspection import Digests
from trainer.data.loader import Batches
from trainer.data.pack import Packs
from trainer.data.supervise import TokenRows
from trainer.elastic import ElasticConfig, SliceSampler
from trainer.optim import OptimConfig
from trainer.schedule import Schedule, ScheduleConfig


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
    freeze_matching: list[str] = field(default_factory=list)  # the same by expressions for full parameter names
    resume: Path | None = None  # directory of a run to go on with; all else is as there, but for what may change
    fork: bool = False  # with resume: begin a new run, in another trainer.output, from that run's newest weights


@dataclass(frozen=True)
class Prepared:
    """All that is known of a run without reading weights: checked, cheap, and in the order it is checked in."""

    checkpoint: Path | None
    config: ModelConfig
    loaded: ModelConfig  # the same, without towers that are neither trained nor needed by a row
    processor: Processor
    trainer: TrainerConfig  # its steps counted
    schedule: Schedule
    loader: Batches
    packs: Packs | None  # None where rows are streamed
    sampler: SliceSampler
    evaluated: list[SliceSpec]
    train: TokenRows  # of a stream those of its first block
    validation: TokenRows | None
    trains_media: bool  # whether a tower or an embedder is trained, which rows without media have no gradient for
    idle: list[Modality]  # what is trained, but has no row to learn from
    digests: Digests  # of all media; each is read for it once

    @property
    def has_media(self) -> bool:
        """Whether any row holds an image or sound, or may: of a stream it is not known."""
        if self.packs is None and self.config.modalities != (Modality.text,):
            return True
        kinds = (self.train,) if self.validation is None else (self.train, self.validation)
        return any(row.media for found in kinds for row in found.rows)

    def steps_per_epoch(self, at_once: int) -> float | None:
        """How many steps, of so many packs each, go through all data; None of a stream, where nobody knows."""
        return None if self.packs is None else 1 / self.loader.epoch(at_once)
