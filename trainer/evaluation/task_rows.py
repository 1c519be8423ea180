# SPDX-License-Identifier: Apache-2.0
"""The rows of a task's files: read as those of training are, and as many of them as are wanted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.errors import InputError
from model.processor.chat import Role
from model.processor.processor import Processor
from trainer.data.config import RowFormat
from trainer.data.example import Example
from trainer.data.faults import Fault, raise_faults
from trainer.data.finding import find
from trainer.data.formats.known import KNOWN, check_columns, format_of, parsed, renamed
from trainer.data.reading import Row
from trainer.data.sources import Source
from trainer.data.wording import fields_of, kind
from trainer.evaluation.task_config import TaskConfig
from trainer.seeding import seeded

Item = TypeVar("Item")


@dataclass(frozen=True)
class RawRow:
    """An object as a file has it, its columns under our names.

    Args:
        fields: Its fields.
        where: Its place.
        directory: Where relative names of media start.
    """

    fields: dict[str, Any]
    where: str
    directory: Path


def examples_of(config: TaskConfig) -> list[Example]:
    """The conversations and texts of a task, as many as are wanted.

    Raises:
        MatsliceError: A file is missing or has no rows, rows cannot be used, or columns are not those of the format.
    """
    check_columns(config.columns, config.format, "columns")
    found: list[Example | Fault] = []
    for path in config.files:
        found.extend(Source(path, config.format, config.columns).examples())
    raise_faults([one for one in found if isinstance(one, Fault)], total=len(found))
    return wanted([one for one in found if isinstance(one, Example)], config)


def raw_rows(config: TaskConfig) -> list[RawRow]:
    """The rows of a task as objects, as many as are wanted.

    Raises:
        InputError: A file is missing or has no rows, or some rows are no objects.
    """
    found: list[RawRow] = []
    faults: list[Fault] = []
    for path in config.files:
        for piece in find(path):
            rows = list(piece.read(0))
            if not rows:
                raise InputError(f"data: '{piece.name}' has no rows")
            for row in rows:
                if isinstance(row, Fault):
                    faults.append(row)
                elif not isinstance(row.value, dict):
                    faults.append(Fault(row.where, f"row: found {kind(row.value)}; expected an object"))
                else:
                    found.append(RawRow(renamed(row.value, config.columns), row.where, piece.directory))
    raise_faults(faults, total=len(found) + len(faults))
    return wanted(found, config)


def conversation_of(row: RawRow, form: RowFormat, roles: Collection[Role] = (Role.assistant,)) -> Example:
    """The conversation of a row.

    Args:
        row: The row.
        form: Its format; auto tells it from the fields.
        roles: Of whom one is to speak.

    Raises:
        InputError: It is none, or something is wrong with a field, as ``field: found …; expected …``.
    """
    told = form if form is not RowFormat.auto else format_of(row.fields)
    if told is None:
        raise InputError(f"row: found {fields_of(row.fields)}; expected the fields of a known format ({KNOWN})")
    if told in (RowFormat.text, RowFormat.preference):
        raise InputError(f"row: found one of format {told}; expected a conversation, or a prompt with its answers")
    found = parsed(Row(row.fields, row.where), told, row.directory, columns={}, roles=roles)
    if isinstance(found, Fault):
        raise InputError(found.what)
    return found


def wanted(items: list[Item], config: TaskConfig) -> list[Item]:
    """As many as the task asks for: the first, or drawn by its seed, in their order."""
    most = config.max_items
    if most is None or most >= len(items):
        return items
    if config.seed is None:
        return items[:most]
    return [items[index] for index in sorted(seeded("items of a task", config.seed).sample(range(len(items)), most))]


def longest_row(config: TaskConfig, processor: Processor) -> int:
    """The tokens that a row may have: as the task says, and never more than the model has positions."""
    return min(config.max_length_tokens, processor.config.text.max_position_embeddings)
