# SPDX-License-Identifier: Apache-2.0
"""Tell how much memory a training run takes at its peak, without running it; neither weights nor data are read."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from model.adapter.lora import AdapterConfig
from model.checkpoint.names import modality_of
from model.config import CONFIG_FILE, ModelConfig
from model.errors import ConfigError
from model.freezing import Part as Frozen
from model.layers.embedding import TablePlacement
from model.processor.processor import Processor
from model.slicing.spec import SliceConfig, SliceSpec
from model.tower_config import Modality
from recipes.build import build_processor, find_config
from recipes.estimate_process import process_bytes
from recipes.estimate_report import RUNTIME, Report
from recipes.locate import find_checkpoint
from recipes.program import start
from recipes.shape import ShapeConfig
from trainer.allocator import give_back
from trainer.config import Device, TrainerConfig
from trainer.data.config import DataConfig
from trainer.elastic import ElasticConfig, ElasticPolicy, SliceSampler
from trainer.estimate import CUDA_CONTEXT_BYTES, estimate, savings, trained_names, trains_table
from trainer.optim import OptimConfig
from trainer.planned import Planned
from trainer.schedule import ScheduleConfig

TOKENIZER_FILE = "tokenizer.json"


class Where(StrEnum):
    """What the run would be on."""

    auto = "auto"  # as trainer.device says, on this machine
    cpu = "cpu"
    cuda = "cuda"  # also where there is none


@dataclass(kw_only=True, slots=True)
class EstimateRecipe:
    """Tell how much memory a training run takes at its peak, without running it.

    Takes the words of ``matslice train``, of which none must be given but model= or checkpoint=. Counted are one
    process's steps on full rows: of data.pack_tokens, or of data.max_length_tokens, with a label at every token, and
    with images= and clips= as many as that in each. Where data.validation or data.held_out is given, measuring counts,
    too. Neither data nor weights are read, so rows that are kept in memory as tokens are not counted.
    """

    data: DataConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    elastic: ElasticConfig
    sizes: dict[str, SliceConfig]  # elastic says whether a step trains several, one after the other
    adapter: AdapterConfig | None = None  # null trains every weight
    model: ShapeConfig | None = None
    checkpoint: str | None = None  # directory or hub name of published weights, of which the config is read
    tokenizer: Path | None = None  # read for its own memory, if it is there
    modalities: list[Modality] | None = None  # towers to load; null = those that are trained
    freeze: list[Frozen] = field(default_factory=list)  # left untrained: text, vision, audio, embedders; adapter=none
    freeze_matching: list[str] = field(default_factory=list)  # the same by expressions for full parameter names
    images: int = 0  # in a row; a row has room for each one's soft tokens
    clips: int = 0  # of sound in a row, of the longest that the audio tower takes
    where: Where = Where.auto  # the run would be: auto takes this machine's GPU if it has one
    compare: bool = True  # also tell what other settings would save
    json: bool = False  # print it as JSON instead


def run(recipe: EstimateRecipe) -> None:
    """Print what is estimated."""
    planned = planned_of(recipe)
    on_cuda = is_on_cuda(recipe)
    if not on_cuda:
        give_back()  # as training does, so that memory is dealt out alike
    processor = read_tokenizer(recipe, planned.config)
    if processor is not None and processor.images is not None:
        settings = processor.images.settings
        planned = dataclasses.replace(planned, picture_px=(settings.height, settings.width))
    apart = {RUNTIME: CUDA_CONTEXT_BYTES if on_cuda else process_bytes()}
    del processor
    found = estimate(planned, apart, on_cuda=on_cuda)
    others = savings(planned, on_cuda=on_cuda, shown=shown) if recipe.compare else {}
    report = Report(planned, found, others, on_cuda=on_cuda)
    if recipe.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        report.print()


def shown(others: Sequence[tuple[str, Planned]]) -> Iterable[tuple[str, Planned]]:
    """The same, with a bar on a terminal: each takes some seconds to a minute."""
    console = Console(stderr=True)
    return track(
        others, "other settings (compare=false leaves them out)", console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip


def planned_of(recipe: EstimateRecipe) -> Planned:
    """The step that a recipe asks for.

    Raises:
        ConfigError: Something contradicts something else, or there is no model.
    """
    checkpoint = None if recipe.checkpoint is None else find_checkpoint(recipe.checkpoint, files=[CONFIG_FILE])
    if checkpoint is None and recipe.model is None:
        raise ConfigError(
            "estimate: no model is given; say checkpoint=DIRECTORY, or model=e4b (or another of conf/model)"
        )
    config = find_config(checkpoint, recipe.model)
    if recipe.modalities is not None:
        config = config.only(recipe.modalities)
    width = recipe.data.pack_budget or recipe.data.max_length_tokens
    if width > (most := config.text.max_position_embeddings) and recipe.data.max_length_tokens > most:
        raise ConfigError(
            f"data.max_length_tokens is {recipe.data.max_length_tokens}, but the model has {most} positions"
            " (max_position_embeddings); lower it"
        )
    if recipe.adapter is not None and (recipe.freeze or recipe.freeze_matching):
        raise ConfigError("freeze: an adapter's base is frozen anyway; leave freeze out")
    refuse_crowded(recipe, config, width)
    # As in recipes/train.py: without media, and with the table on its device, no thread makes batches ahead.
    reads_ahead = recipe.images or recipe.clips or recipe.trainer.per_layer_table is not TablePlacement.device
    planned = Planned(
        config=config, adapter=recipe.adapter, optim=recipe.optim, trainer=recipe.trainer, width=width,
        document=min(width, recipe.data.max_length_tokens), specs=specs_of_step(recipe, config),
        workers=recipe.data.workers if reads_ahead else 0, images=recipe.images, clips=recipe.clips,
        is_measured=bool(recipe.data.validation or recipe.data.held_out), freeze=tuple(recipe.freeze),
        freeze_matching=tuple(recipe.freeze_matching),
    )  # fmt: skip
    if recipe.trainer.per_layer_table is not TablePlacement.device and trains_table(planned):
        raise ConfigError(
            f"trainer.per_layer_table is {recipe.trainer.per_layer_table}, but the table is trained, and one that is"
            " not on the device cannot be; set trainer.per_layer_table=device, or train an adapter without it, or"
            " freeze=[text]"
        )
    # Rows without media need no other tower; but of a stream nobody knows what comes.
    if recipe.adapter is not None and recipe.modalities is None and not recipe.data.streaming:
        needed = {Modality.text, *map(modality_of, trained_names(planned))}
        needed |= {Modality.vision} if recipe.images else set()
        needed |= {Modality.audio} if recipe.clips else set()
        planned = dataclasses.replace(planned, config=config.only(needed))
    return planned


def refuse_crowded(recipe: EstimateRecipe, config: ModelConfig, width: int) -> None:
    """Raise ConfigError for media that the model has no tower for, or that no row has room for."""
    needed = 0
    for key, count, tower in (("images", recipe.images, config.vision), ("clips", recipe.clips, config.audio)):
        if count < 0:
            raise ConfigError(f"{key} is {count}; it must be 0 or more")
        if not count:
            continue
        if tower is None:
            raise ConfigError(f"{key} is {count}, but this model has no tower for them; set {key}=0")
        needed += count * (tower.tokens.per_item + 2)  # with a mark at either end
    if needed > width:
        raise ConfigError(
            f"images={recipe.images} and clips={recipe.clips} take {needed} tokens, but a row has {width}; give fewer,"
            " or raise data.max_length_tokens, or data.pack_tokens"
        )


def specs_of_step(recipe: EstimateRecipe, config: ModelConfig) -> tuple[SliceSpec, ...]:
    """The sub-models that a step trains, one after the other; where chance draws one, the largest that it may draw."""
    sampler = SliceSampler(recipe.elastic, config.text, seed=recipe.trainer.seed)
    if recipe.elastic.policy is not ElasticPolicy.sandwich:
        return (sampler.largest,)
    others = [spec for spec in sampler.levels if spec not in (sampler.largest, sampler.smallest)]
    return tuple(dict.fromkeys((sampler.largest, sampler.smallest, *others[:1])))


def is_on_cuda(recipe: EstimateRecipe) -> bool:
    """Whether the run would be on a GPU."""
    if recipe.where is Where.auto:
        return recipe.trainer.device is Device.auto and torch.cuda.is_available()
    return recipe.where is Where.cuda


def read_tokenizer(recipe: EstimateRecipe, config: ModelConfig) -> Processor | None:
    """Tokenizer and preparation of media, if they are on this machine: they take memory, too."""
    places = (recipe.tokenizer, None if recipe.checkpoint is None else Path(recipe.checkpoint))
    directory = next((place for place in places if place is not None and (place / TOKENIZER_FILE).is_file()), None)
    return None if directory is None else build_processor(directory, None, config)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("estimate", EstimateRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
