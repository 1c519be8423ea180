# SPDX-License-Identifier: Apache-2.0
"""Tiny trainers on other data than ``parts`` gives them: rows that are packed, or streamed from a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.trainer.parts import spelling, tiny_processor, write_jsonl
from trainer.data.collate import Collator
from trainer.data.config import DataConfig
from trainer.data.loader import Loader
from trainer.data.pack import pack_rows
from trainer.data.stream import StreamLoader
from trainer.data.stream_rows import StreamRows
from trainer.loop import Trainer

BUDGET = 90  # tokens of a pack: two to four rows
BLOCK_ROWS = 6  # of the eleven there are, so that every other block ends with an epoch


def write_stream(path: Path) -> Path:
    """The rows that ``tiny_trainer`` has, as a file."""
    examples = spelling(11)
    return write_jsonl(path, [{"prompt": one.messages[0].text, "completion": one.messages[1].text} for one in examples])


def packed(trainer: Trainer, *, workers: int) -> Trainer:
    """The same on packs of its rows."""
    old = trainer.loader
    assert isinstance(old, Loader)
    packs = pack_rows(old.rows, budget=BUDGET, seed=old.seed, shuffle=True)
    assert max(map(len, packs.packs)) > 1
    loader = Loader(old.rows, batch_size=old.batch_size, seed=old.seed, collator=old.collator, packs=packs)
    return dataclasses.replace(trainer, loader=loader, workers=workers)


def streamed(trainer: Trainer, path: Path, *, workers: int) -> Trainer:
    """The same on packs of rows that are read while it trains."""
    data = DataConfig(train=[str(path)], streaming=True, stream_block_rows=BLOCK_ROWS, max_length_tokens=BUDGET)
    seed, size = trainer.config.seed, trainer.loader.batch_size
    rows = StreamRows(data, tiny_processor(), seed)
    loader = StreamLoader(rows, batch_size=size, seed=seed, collator=Collator(0), budget=BUDGET)
    return dataclasses.replace(trainer, loader=loader, workers=workers)
