# SPDX-License-Identifier: Apache-2.0
"""Conversations from JSON Lines: ``{"messages": [{"role": "user", "content": "…"}, …]}`` on every line.

Every line is looked at before anything is trained, and every fault is reported with its place. Fields
beside ``messages``, ``images`` and ``audio`` are allowed and ignored, but for other names of media; ``media`` says how
those two are written.
Blank lines are no rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.processor.chat import Role
from trainer.data.example import Example
from trainer.data.faults import raise_faults
from trainer.data.media import faults_of_items, faults_of_media, faults_of_names, messages_of
from trainer.data.wording import faults_of_text, kind

ROLES = (*(role.value for role in Role), "model")  # the last is Gemma's own word for the assistant


def read_conversations(paths: Sequence[str | Path]) -> list[Example]:
    """The conversations of all files, in order.

    Raises:
        InputError: A file is missing or holds no row, or rows are malformed; the first ones are listed.
    """
    examples: list[Example] = []
    faults: list[str] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise InputError(f"data: no file '{path}' (relative names start at {Path.cwd()})")
        before = len(examples) + len(faults)
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if line.strip():
                parse_line(line, path, number, (examples, faults))
        if len(examples) + len(faults) == before:
            raise InputError(f"data: '{path}' has no rows; each line is one conversation")
    raise_faults(faults, total=len(examples) + len(faults))
    return examples


def fingerprint(paths: Sequence[str | Path]) -> str:
    """A hash of the content of all files in order: the same data under another name is the same data."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def parse_line(line: bytes, path: Path, number: int, into: tuple[list[Example], list[str]]) -> None:
    """Add what ``line`` holds to the examples, or what is wrong with it to the faults."""
    where, (examples, faults) = f"{path}:{number}", into
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        faults.append(f"{where}: found byte {byte:#04x} at column {error.start + 1}; expected UTF-8 text")
        return
    except json.JSONDecodeError as error:
        faults.append(f"{where}: found no JSON ({error.msg} at column {error.colno}); expected one object per line")
        return
    wrong = list(faults_of(row))
    if wrong:
        faults.append(f"{where}: {wrong[0]}")  # one per row, so that the count is one of rows
        return
    try:
        examples.append(Example(messages_of(row, path.parent), where))
    except InputError as error:
        faults.append(f"{where}: messages: {error}")


def faults_of(row: Any) -> Iterator[str]:
    """What is wrong with a parsed line, as ``field: found …; expected …``."""
    if not isinstance(row, dict):
        yield f"row: found {kind(row)}; expected an object with 'messages'"
        return
    if "messages" not in row:
        yield f"messages: found none (the row has {', '.join(map(repr, row)) or 'no fields'}); expected a list of turns"
        return
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else kind(messages)
        yield f"messages: found {found}; expected a list of turns"
        return
    for index, turn in enumerate(messages):
        yield from faults_of_turn(turn, f"messages[{index}]")
    if all(isinstance(turn, dict) and turn.get("role") not in ("assistant", "model") for turn in messages):
        yield "messages: found no assistant turn; expected at least one, it is what is learnt"
    yield from faults_of_media(row)


def faults_of_turn(turn: Any, field_name: str) -> Iterator[str]:
    """What is wrong with one turn."""
    if not isinstance(turn, dict):
        yield f"{field_name}: found {kind(turn)}; expected an object with 'role' and 'content'"
        return
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or role not in ROLES:
        found = "none" if "role" not in turn else repr(role)
        yield f"{field_name}.role: found {found}; expected {', '.join(ROLES)}"
    if isinstance(content, list):
        yield from faults_of_items(content, f"{field_name}.content")
    else:
        yield from faults_of_text(turn, "content", field_name, expected="a string or a list of items")
    yield from faults_of_names(turn, f"{field_name}.")
    if is_blank(content):
        yield f"{field_name}.content: found no text; expected some"


def is_blank(content: Any) -> bool:
    """Whether a turn says nothing and shows nothing."""
    if isinstance(content, list):
        return all(
            isinstance(item, dict) and item.get("type") == "text" and is_blank(item.get("text")) for item in content
        )
    return isinstance(content, str) and not content.strip()
