# SPDX-License-Identifier: Apache-2.0
"""Texts to be continued: ``{"text": "…"}``. Every token of them is learnt, and no turn is written around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.processor.chat import Message, Role
from trainer.data.example import Example
from trainer.data.media import FIELDS, faults_of_names
from trainer.data.wording import faults_of_own_text, kind


def faults_of_plain(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a row of text."""
    yield from faults_of_own_text(row, "text", blank=False)
    for name in FIELDS.values():
        if row.get(name):
            yield f"{name}: found {kind(row[name])}; expected none beside 'text' (media belong in conversations)"
    yield from faults_of_names(row, "", known=FIELDS.values())


def example_of_plain(row: Mapping[str, Any], directory: Path, where: str) -> Example:  # noqa: ARG001 (as all others)
    """The text of a row without faults."""
    return Example((Message(Role.user, row["text"]),), where, is_text=True, field="text")
