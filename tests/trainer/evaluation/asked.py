# SPDX-License-Identifier: Apache-2.0
"""Tasks of tiny files, and the tiny model to ask them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.gemma3n import Gemma3n
from model.processor.processor import Processor
from model.slicing.spec import SliceSpec
from tests.tiny import TINY_TEXT, tiny_config, tiny_model
from tests.trainer.parts import (
    CHARACTERS,
    SLICES,
    SPECIAL,
    character_tokenizer,
    write_jsonl,
)
from trainer.data.collate import Collator
from trainer.evaluation.engine import Engine
from trainer.evaluation.metric import Values
from trainer.evaluation.task import Task
from trainer.evaluation.task_building import build_task
from trainer.evaluation.task_config import TaskConfig, TaskKind
from trainer.soft_tokens import SharedTowers

SPECS = [SliceSpec.resolve(written, TINY_TEXT) for written in SLICES.values()]
FULL = SPECS[0]


def letters_processor() -> Processor:
    """Text alone; there are capitals to letter choices by."""
    return Processor(character_tokenizer([*SPECIAL, *CHARACTERS, *"ABCDEFGHIJ:"], SPECIAL), None, None, tiny_config())


def config_of(directory: Path, kind: TaskKind, lines: Sequence[object], **changes: Any) -> TaskConfig:
    """A task of one file."""
    file = write_jsonl(directory / "rows.jsonl", lines)
    return TaskConfig(**{"name": "asked", "kind": kind, "files": [str(file)]} | changes)


def task_of(
    directory: Path, kind: TaskKind, lines: Sequence[object], processor: Processor | None = None, **changes: Any
) -> Task:
    """The task, made ready; without a reference unless ``metrics`` has what needs one."""
    return build_task(
        config_of(directory, kind, lines, **changes), processor or letters_processor(), has_reference=False
    )


def engine(
    processor: Processor | None = None, *, reference: SliceSpec | None = None, model: Gemma3n | None = None
) -> Engine:
    """The tiny model, of text alone or with its towers, or another."""
    used = processor or letters_processor()
    model = model or tiny_model(used.config)
    return Engine(
        model=model, tokenizer=used.tokenizer, collator=Collator(used.tokenizer.pad_id, used),
        towers=SharedTowers(model), reference=reference,
    )  # fmt: skip


def measured(task: Task, asked: Engine, specs: Sequence[SliceSpec] = (FULL,)) -> list[list[Values]]:
    """Of each spec what is found of every item, in order."""
    found: list[list[Values]] = [[] for _ in specs]
    for batch in task.batches:
        for values, more in zip(found, task.measure(asked, specs, batch), strict=True):
            values.extend(more)
    return found
