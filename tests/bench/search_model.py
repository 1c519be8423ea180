# SPDX-License-Identifier: Apache-2.0
"""What the study of search methods is made on: a small elastic model, the text it reads, and the loss of all its parts.

The text is the source of Python's own standard library, as bytes: there is nothing to fetch and no tokenizer to train.
Files are dealt out by a hash of their names, most to training, the others to three splits, of which a search may see
the first two.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from rich.console import Console

from model.config import LayerType, ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.slicing.spec import SliceConfig, SliceSpec
from trainer.checkpoint import Run
from trainer.config import Device, TrainerConfig
from trainer.data.collate import Collator
from trainer.data.loader import Loader
from trainer.data.supervise import TokenRow
from trainer.elastic import ElasticConfig, ElasticPolicy, SliceSampler
from trainer.loop import Trainer
from trainer.optim import OptimConfig, build_optimizer
from trainer.runtime import start
from trainer.schedule import Schedule, ScheduleConfig
from trainer.sinks import open_sinks
from trainer.weights import model_weights

BYTES, SPECIAL = 256, 3  # ids of the text are its bytes, behind those of padding, end and begin
LOCAL, GLOBAL = LayerType.sliding_attention, LayerType.full_attention
WIDTHS = (16, 64, 256)
LAYERS = 8
CONFIG = ModelConfig(
    text=TextConfig(
        layer_types=(LOCAL, LOCAL, LOCAL, GLOBAL) * 2,
        intermediate_size=(WIDTHS[-1],) * LAYERS,
        activation_sparsity_pattern=(0.9,) * 2 + (0.0,) * 6,
        num_kv_shared_layers=4,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=32,
        max_position_embeddings=256,
        vocab_size=BYTES + SPECIAL,
        vocab_size_per_layer_input=BYTES + SPECIAL,
        hidden_size_per_layer_input=8,
        altup_num_inputs=2,
        laurel_rank=4,
    )
)
ROW_TOKENS = 128


class Split(StrEnum):
    """Parts of the text that training does not see; the last is never searched on."""

    search = "search"
    calibration = "calibration"
    report = "report"


def all_specs() -> list[SliceSpec]:
    """Every spec of the study, the last layer's width changing fastest."""
    kept = tuple(range(LAYERS))
    return [
        SliceSpec("s" + "".join(str(WIDTHS.index(width)) for width in widths), kept, widths)
        for widths in itertools.product(WIDTHS, repeat=LAYERS)
    ]


def files() -> dict[Split | None, list[bytes]]:
    """The files of each split, and under None those to train on."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[Split | None, list[bytes]] = {part: [] for part in (None, *Split)}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"} & set(name.parts):
            continue
        place = hashlib.sha256(name.as_posix().encode()).digest()[0]
        found[list(Split)[place % len(Split)] if place < 48 else None].append(path.read_bytes())
    return found


def texts() -> tuple[bytes, dict[Split, bytes]]:
    """The text to train on, and that of each split."""
    found = files()
    return b"".join(found[None]), {split: b"".join(found[split]) for split in Split}


def rows_of(text: bytes, *, count: int, seed: int) -> list[TokenRow]:
    """As many pieces of a text, from anywhere in it; every byte but the first is learnt, behind a begin mark."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        place = chance.randrange(len(text) - ROW_TOKENS)
        piece = [CONFIG.text.bos_token_id, *(SPECIAL + byte for byte in text[place : place + ROW_TOKENS])]
        ids = torch.tensor(piece)
        rows.append(TokenRow(ids=ids, supervised=torch.ones_like(ids, dtype=torch.bool), where=f"text:{number}"))
    return rows


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How long is trained, and on how much is measured."""

    steps: int
    batch_size: int
    measured_rows: int  # at a time
    batches: Mapping[Split, int]  # of so many rows
    compiled: bool  # whether torch compiles what most of the measuring is


SCALES = {
    "full": Scale(
        steps=1800, batch_size=24, measured_rows=16, compiled=True,
        batches={Split.search: 4, Split.calibration: 4, Split.report: 14},
    ),
    "small": Scale(
        steps=4, batch_size=2, measured_rows=1, compiled=False, batches=dict.fromkeys(Split, 1),
    ),
}  # fmt: skip


def trained(directory: Path, scale: Scale, *, threads: int) -> Gemma3n:
    """The elastic model, from its run if that is there; each step trains one of all specs, drawn by chance."""
    torch.set_num_threads(threads)
    train, _ = texts()
    config = TrainerConfig(
        output=directory, max_steps=scale.steps, batch_size=scale.batch_size, device=Device.cpu, seed=0,
        eval_before=False, log_every=100, resume=directory.exists(),
    )  # fmt: skip
    slices = {spec.name: SliceConfig(name=spec.name, ffn_widths=list(spec.ffn_widths)) for spec in all_specs()}
    sampler = SliceSampler(ElasticConfig(policy=ElasticPolicy.sample, slices=slices), CONFIG.text, seed=0)
    accelerator = start(config, may_leave_unused=False)
    identity = {"trainer": config.identity, "text": hashlib.sha256(train).hexdigest()}
    run = Run(config, identity, accelerator=accelerator)
    model = Gemma3n.build(CONFIG)
    model.initialize(0)
    optim = OptimConfig(learning_rate=3e-3)
    trainer = Trainer(
        config=config, accelerator=accelerator, model=model, weights=model_weights(model),
        optimizer=build_optimizer(model, optim),
        schedule=Schedule(config=ScheduleConfig(warmup_share=0.05),
                          learning_rate=optim.learning_rate, max_steps=config.num_steps),
        sampler=sampler,
        loader=Loader(rows_of(train, count=scale.steps * scale.batch_size, seed=0), batch_size=config.batch_size,
                      seed=config.seed, collator=Collator(CONFIG.text.pad_token_id)),
        validation=[], evaluated=[], run=run,
        sinks=open_sinks(config, run, console=Console(), settings=identity),
    )  # fmt: skip
    trainer.fit()
    return model.eval()
