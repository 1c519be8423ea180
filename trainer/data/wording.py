# SPDX-License-Identifier: Apache-2.0
"""How the faults of a row are worded: ``field: found …; expected …``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def kind(value: Any) -> str:
    """What a JSON value is, in words, with its beginning."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    name = names.get(type(value), "a number")
    return name if value is None or isinstance(value, dict | list) else f"{name} ({str(value)[:40]!r})"


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
