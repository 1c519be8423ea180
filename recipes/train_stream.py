# SPDX-License-Identifier: Apache-2.0
"""``data.streaming``: what can be known before training of data that are read during it, their first block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from model.errors import ConfigError
from model.processor.processor import Processor
from model.tower_config import Modality
from recipes.build import refuse_beyond_positions
from recipes.train_recipe import TrainRecipe
from trainer.config import TrainerConfig
from trainer.data.collate import Collator
from trainer.data.config import DataConfig, OnBadRow
from trainer.data.dataset import tell
from trainer.data.stream import StreamLoader
from trainer.data.stream_rows import StreamRows


def refuse_counting(trainer: TrainerConfig) -> None:
    """Raise ConfigError if a run is to end after epochs, which nobody can count in steps."""
    if trainer.epochs is not None:
        raise ConfigError(
            f"trainer.epochs is {trainer.epochs}, but with data.streaming=true it is not known how many rows there are;"
            " give trainer.max_steps, and trainer.epochs=null"
        )


def open_stream(recipe: TrainRecipe, processor: Processor) -> StreamLoader:
    """What reads rows while training; rows to be held out of it are read.

    Raises:
        MatsliceError: A source is missing, or rows to be held out cannot be used and are to be refused.
    """
    data, config = recipe.data, recipe.trainer
    check = partial(refuse_beyond_positions, config=processor.config.text)
    rows = StreamRows(data, processor, config.seed, check=check)
    if data.held_out is not None:
        rows.hold_out(round(data.held_out))
    return StreamLoader(
        rows, batch_size=config.batch_size, seed=config.seed,
        collator=Collator(processor.tokenizer.pad_id, processor), shuffle=data.shuffle, budget=data.pack_budget,
        tell=tell,
    )  # fmt: skip


def tell_what_was_checked(data: DataConfig, loader: StreamLoader, towers: Sequence[Modality]) -> None:
    """Say that not all rows were looked at before training, and what is loaded as rows may come that need it."""
    count = len(loader.block(0).reading.found.rows)
    fate = "ends the run" if data.on_bad_row is OnBadRow.refuse else "is left out"
    tell(
        f"data: the first {count:,} rows of a stream were checked; of the others, one that cannot be used {fate} when"
        f" it comes (data.on_bad_row={data.on_bad_row})"
    )
    if towers:
        tell(f"data: loads what takes in {' and '.join(towers)}, as rows with it may come; modalities=[text] leaves it")
