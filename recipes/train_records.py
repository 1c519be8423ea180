# SPDX-License-Identifier: Apache-2.0
"""What is written down of a training run: what it is, what it is made of, and every value it was given."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from importlib.metadata import version
from operator import ne
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from model.checkpoint.reader import Checkpoint
from model.freezing import Part, modules_of
from model.gemma3n import Gemma3n
from recipes.run_identity import shape_of
from recipes.train_recipe import Prepared, TrainRecipe
from trainer.data.config import LongRows
from trainer.data.dataset import identity_of
from trainer.data.media import fingerprint_of_media
from trainer.data.supervise import TokenRows
from trainer.metrics import Record


def identity(recipe: TrainRecipe, prepared: Prepared) -> dict[str, Any]:
    """What decides the numbers of a run: its configs, its data, the weights it starts from."""
    start_weights = None if prepared.checkpoint is None else Checkpoint.open(prepared.checkpoint).fingerprint()
    return {
        **shape_of(prepared.config),
        "freeze": sorted(recipe.freeze),
        "freeze_matching": sorted(recipe.freeze_matching),
        "base": start_weights,
        "adapter": None if recipe.adapter is None else dataclasses.asdict(recipe.adapter),
        "specs": [dataclasses.asdict(spec) for spec in prepared.sampler.levels],
        "elastic": {"policy": recipe.elastic.policy, "probabilities": recipe.elastic.probabilities},
        "optim": dataclasses.asdict(recipe.optim),
        "schedule": prepared.schedule.identity,
        "trainer": prepared.trainer.identity,
        "data": {
            **identity_of(recipe.data), "rows": None if prepared.packs is None else len(prepared.train.rows),
            "shuffle": recipe.data.shuffle,
            "pack_tokens": recipe.data.pack_budget,
            "cut_at_tokens": recipe.data.max_length_tokens if recipe.data.long_rows is LongRows.truncate else None,
            "long_audio": recipe.data.long_audio,
            "media": fingerprint_of_media(
                (medium for row in prepared.train.rows for medium in row.media), prepared.digests
            ),
        },
        "tokenizer": prepared.processor.tokenizer.fingerprint,
    }  # fmt: skip


def start_record(prepared: Prepared, gemma: Gemma3n, model: nn.Module, *, step: int) -> Record:
    """What a run is made of, as a record; ``step`` is the one it goes on from."""
    parameters = list(model.parameters())
    parts = {part: [p for module in modules_of(gemma, part) for p in module.parameters()] for part in Part}
    validation = prepared.validation or TokenRows([], [], 0)
    table = gemma.per_layer_table
    return {
        "kind": "start",
        "step": step,
        **rows_in_numbers("train", prepared.train),
        **rows_in_numbers("validation", validation),
        "train_packs": None if prepared.packs is None else len(prepared.packs),
        "train_packs_filled": None if prepared.packs is None else prepared.packs.share_filled,
        "attention": gemma.attention.used,
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        **{f"trainable_parameters/{part}": sum(p.numel() for p in parts[part] if p.requires_grad) for part in Part},
        "total_parameters": sum(p.numel() for p in parameters) + (table.num_entries if table is not None else 0),
        "modalities": list(gemma.config.modalities),  # what is loaded
        "specs": [spec.name for spec in prepared.sampler.levels],
    }


def rows_in_numbers(name: str, found: TokenRows) -> Record:
    """How many rows there are, what is in them, and what became of those, and of recordings, that were too long."""
    # A recording that is cut short leaves one clip, and of one that is cut into several no end goes.
    heard = [(row.wholes, row.recordings) for row in found.rows]
    return {
        f"{name}_rows": len(found.rows),
        f"{name}_rows_skipped": found.num_skipped,
        f"{name}_rows_truncated": found.num_truncated,
        f"{name}_rows_bad": found.num_bad,
        f"{name}_rows_with_images": sum(bool(row.pictures) for row in found.rows),
        f"{name}_rows_with_audio": sum(bool(row.recordings) for row in found.rows),
        f"{name}_recordings": sum(len(wholes) for wholes, _ in heard),
        f"{name}_recordings_truncated": sum(
            sum(map(ne, wholes, clips)) for wholes, clips in heard if len(wholes) == len(clips)
        ),
        f"{name}_clips": sum(len(row.recordings) for row in found.rows),
    }


def written_out(recipe: TrainRecipe) -> str:
    """Every value of a recipe as YAML, under the command line and the versions it was last run with."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "peft"))
    told = [f"# {shlex.join(sys.argv)}", f"# Python {platform.python_version()}, {packages}"]
    own = dataclasses.replace(recipe, resume=None, fork=False)  # how it was begun, not how it was gone on with
    own.trainer = dataclasses.replace(recipe.trainer, resume=False)
    return "\n".join([*told, OmegaConf.to_yaml(OmegaConf.structured(own))])
