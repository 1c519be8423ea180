# SPDX-License-Identifier: Apache-2.0
"""How the faults of a row are worded: ``field: found …; expected …``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def kind(value: Any) -> str:
    """What a JSON value is, in words, with its beginning."""
    names = {
        dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null", bytes: "bytes",
        int: "a number", float: "a number",
    }  # fmt: skip
    name = names.get(type(value), f"a {type(value).__name__}")  # a table may hold dates and the like
    return name if value is None or isinstance(value, dict | list | bytes) else f"{name} ({str(value)[:40]!r})"


def fields_of(row: Mapping[str, Any]) -> str:
    """That a row lacks something, with what it has."""
    return f"none (the row has {', '.join(map(repr, row)) or 'no fields'})"


def faults_of_text(item: Mapping[str, Any], key: str, where: str, *, expected: str = "a string") -> Iterator[str]:
    """What is wrong with the text of ``item`` called ``key``, apart from being empty."""
    text = item.get(key)
    if not isinstance(text, str):
        yield f"{where}.{key}: found {kind(text) if key in item else 'none'}; expected {expected}"
    elif lone := next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None):
        yield (
            f"{where}.{key}: found half of a surrogate pair (\\u{ord(lone):04x}) at character"
            f" {text.index(lone) + 1}; expected text that can be written as UTF-8"
        )


def faults_of_own_text(
    row: Mapping[str, Any], key: str, *, blank: bool = True, expected: str = "a string"
) -> Iterator[str]:
    """What is wrong with the text of a row called ``key``; ``blank`` says whether it may say nothing."""
    if key not in row:
        yield f"{key}: found {fields_of(row)}; expected {expected}"
        return
    yield from (fault.removeprefix(".") for fault in faults_of_text(row, key, "", expected=expected))
    if not blank and isinstance(row[key], str) and not row[key].strip():
        yield f"{key}: found no text; expected some"
