# SPDX-License-Identifier: Apache-2.0
"""Which formats there are, how one is told from the fields of a row, and from a row to an example by any of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import ConfigError, InputError
from model.processor.chat import Role
from trainer.data.config import RowFormat
from trainer.data.example import Example
from trainer.data.faults import Fault
from trainer.data.formats.answers import example_of_alpaca, example_of_prompt, faults_of_alpaca, faults_of_prompt
from trainer.data.formats.messages import (
    example_of_messages,
    example_of_sharegpt,
    faults_of_messages,
    faults_of_sharegpt,
)
from trainer.data.formats.pairs import example_of_pair, faults_of_pair
from trainer.data.formats.text import example_of_plain, faults_of_plain
from trainer.data.reading import Row
from trainer.data.wording import kind

MEDIA = ("images", "audio")


@dataclass(frozen=True)
class Format:
    """One way to write rows.

    Args:
        told_by: Fields that rows of it have, and rows of those before it in the table have not.
        fields: All that are read.
        faults: What is wrong with a row, given whose words are learnt.
        example: What a row without faults holds, given where its media start and its place.
    """

    told_by: tuple[str, ...]
    fields: tuple[str, ...]
    faults: Callable[[Mapping[str, Any], Collection[Role]], Iterator[str]]
    example: Callable[[Mapping[str, Any], Path, str], Example]


FORMATS = {
    RowFormat.messages: Format(("messages",), ("messages", *MEDIA), faults_of_messages, example_of_messages),
    RowFormat.sharegpt: Format(
        ("conversations",), ("conversations", "system", *MEDIA), faults_of_sharegpt, example_of_sharegpt
    ),
    RowFormat.preference: Format(
        ("chosen",), ("prompt", "chosen", "rejected", *MEDIA), lambda row, _: faults_of_pair(row), example_of_pair
    ),
    RowFormat.alpaca: Format(
        ("instruction", "output"), ("instruction", "input", "output", "system", *MEDIA),
        lambda row, _: faults_of_alpaca(row), example_of_alpaca,
    ),
    RowFormat.prompt_completion: Format(
        ("prompt", "completion"), ("prompt", "completion", *MEDIA), lambda row, _: faults_of_prompt(row),
        example_of_prompt,
    ),
    RowFormat.text: Format(("text",), ("text",), lambda row, _: faults_of_plain(row), example_of_plain),
}  # fmt: skip
KNOWN = "; ".join(" and ".join(known.told_by) for known in FORMATS.values())


def format_of(row: Any) -> RowFormat | None:
    """The format that a row has the fields of; None if there is none."""
    if not isinstance(row, dict):
        return None
    return next((name for name, known in FORMATS.items() if all(field in row for field in known.told_by)), None)


def renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """A row with its columns under our names for them, and without what stood under those."""
    if not columns or not isinstance(row, dict):
        return row
    ours = {theirs: field for field, theirs in columns.items()}
    return {ours.get(name, name): value for name, value in row.items() if name in ours or name not in columns}


def check_columns(columns: Mapping[str, str], form: RowFormat, key: str) -> None:
    """Refuse names of columns for fields that rows do not have.

    Raises:
        ConfigError: There is such a name, or two fields are to be one column.
    """
    known = FORMATS.values() if form is RowFormat.auto else [FORMATS[form]]
    fields = list(dict.fromkeys(field for one in known for field in one.fields))
    rows = "rows" if form is RowFormat.auto else f"rows of format={form}"
    for field, column in columns.items():
        if field not in fields:
            raise ConfigError(f"{key}: '{field}' is no field of {rows}; they have {', '.join(fields)}")
        if list(columns.values()).count(column) > 1:
            raise ConfigError(f"{key}: '{column}' is given for two fields; each needs a column of its own")


def parsed(
    row: Row, form: RowFormat, directory: Path, *, columns: Mapping[str, str], roles: Collection[Role]
) -> Example | Fault:
    """What a row holds, or the first thing that is wrong with it."""
    value = renamed(row.value, columns)
    if not isinstance(value, dict):
        expected = " and ".join(f"'{field}'" for field in FORMATS[form].told_by)
        return Fault(row.where, f"row: found {kind(value)}; expected an object with {expected}")
    wrong = next(FORMATS[form].faults(value, roles), None)
    if wrong is None:
        try:
            return FORMATS[form].example(value, directory, row.where)
        except InputError as error:
            wrong = f"{FORMATS[form].told_by[0]}: {error}"
    return Fault(row.where, in_their_words(wrong, columns))


def in_their_words(wrong: str, columns: Mapping[str, str]) -> str:
    """A fault with the name of the column that its field has in the data."""
    for field, column in columns.items():
        if wrong.startswith((f"{field}:", f"{field}[", f"{field}.")):
            return f"{column}{wrong.removeprefix(field)}"
    return wrong
