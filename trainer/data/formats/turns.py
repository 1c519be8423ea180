# SPDX-License-Identifier: Apache-2.0
"""Turns of a conversation, whatever a format calls their fields, and what a turn says of how it is learnt.

    {"role": "assistant", "content": "Paris, I think.", "train": false}
    {"role": "assistant", "content": "Paris, I think.", "spans": [[0, 5]]}

``train`` true or false goes before ``data.supervise``. ``spans`` are the characters that are learnt, from the first up
to and without the second, counted in the text as it is written, placeholders of media included; in a list of items, in
its texts one behind the other. A span that reaches the last word takes the end of the turn with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.processor.chat import AUDIO_MARKS, IMAGE_MARKS, Role
from trainer.data.example import UNMARKED, Mark
from trainer.data.media import faults_of_items, faults_of_names
from trainer.data.wording import faults_of_text, fields_of, kind

PLACEHOLDERS = (IMAGE_MARKS.placeholder, AUDIO_MARKS.placeholder)
MARKS = ("train", "spans")


@dataclass(frozen=True)
class Names:
    """What a format calls the fields of a turn, and those who speak in it."""

    role: str
    content: str
    roles: Mapping[str, Role]


OPENAI = Names("role", "content", {role.value: role for role in Role} | {"model": Role.assistant})


def faults_of_turns(row: Mapping[str, Any], field: str, names: Names) -> Iterator[str]:
    """What is wrong with a list of turns that the row has or lacks."""
    if field not in row:
        yield f"{field}: found {fields_of(row)}; expected a list of turns"
        return
    turns = row[field]
    if not isinstance(turns, list) or not turns:
        found = "an empty list" if turns == [] else kind(turns)
        yield f"{field}: found {found}; expected a list of turns"
        return
    for index, turn in enumerate(turns):
        yield from faults_of_turn(turn, f"{field}[{index}]", names)


def faults_of_turn(turn: Any, where: str, names: Names) -> Iterator[str]:
    """What is wrong with one turn."""
    if not isinstance(turn, dict):
        yield f"{where}: found {kind(turn)}; expected an object with '{names.role}' and '{names.content}'"
        return
    role, content = turn.get(names.role), turn.get(names.content)
    if not isinstance(role, str) or role not in names.roles:
        found = "none" if names.role not in turn else repr(role)
        yield f"{where}.{names.role}: found {found}; expected {', '.join(names.roles)}"
    if isinstance(content, list):
        yield from faults_of_items(content, f"{where}.{names.content}")
    else:
        yield from faults_of_text(turn, names.content, where, expected="a string or a list of items")
    yield from faults_of_names(turn, f"{where}.")
    if is_blank(content):
        yield f"{where}.{names.content}: found no text; expected some"
    yield from faults_of_mark(turn, where, content)


def is_blank(content: Any) -> bool:
    """Whether a turn says nothing and shows nothing."""
    if isinstance(content, list):
        return all(
            isinstance(item, dict) and item.get("type") == "text" and is_blank(item.get("text")) for item in content
        )
    return isinstance(content, str) and not content.strip()


def faults_of_mark(turn: Mapping[str, Any], where: str, content: Any) -> Iterator[str]:
    """What is wrong with what a turn says of how it is learnt."""
    train, spans = turn.get("train"), turn.get("spans")
    if train is not None and not isinstance(train, bool):
        yield f"{where}.train: found {kind(train)}; expected true or false"
    if spans is None:
        return
    if train is not None:
        yield f"{where}: found 'train' and 'spans'; expected one of them"
    if not isinstance(spans, list) or not spans:
        yield f"{where}.spans: found {'an empty list' if spans == [] else kind(spans)}; expected a list of [start, end]"
        return
    length = len(written(content))
    for index, span in enumerate(spans):
        if not is_span(span, length):
            found = str(span)[:40] if isinstance(span, list) else kind(span)
            yield (
                f"{where}.spans[{index}]: found {found}; expected [start, end] with 0 <= start < end <= {length}, the"
                " characters of its text"
            )


def is_span(span: Any, length: int) -> bool:
    """Whether it is two whole numbers that make a range within a text."""
    if not isinstance(span, list) or [type(end) for end in span] != [int, int]:
        return False
    return 0 <= span[0] < span[1] <= length


def written(content: Any) -> str:
    """The text that spans are counted in."""
    if isinstance(content, list):
        texts = (item.get("text") for item in content if isinstance(item, dict) and item.get("type") == "text")
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def mark_of(turn: Mapping[str, Any], content: Any) -> Mark:
    """What a turn without faults says of how it is learnt, its spans counted without the placeholders of media."""
    train, spans = turn.get("train"), turn.get("spans")
    if spans is None:
        return UNMARKED if train is None else Mark(train=train)
    text = written(content)
    return Mark(spans=tuple((unplaced(start, text), unplaced(end, text)) for start, end in spans))


def unplaced(position: int, text: str) -> int:
    """How many characters before ``position`` belong to no placeholder of a medium."""
    before = 0
    for mark in PLACEHOLDERS:
        start = text.find(mark)
        while 0 <= start < position:
            before += min(len(mark), position - start)
            start = text.find(mark, start + len(mark))
    return position - before


def marks_of(turns: Sequence[Mapping[str, Any]], names: Names) -> tuple[Mark, ...]:
    """What turns without faults say of how they are learnt; nothing if none says anything."""
    marks = tuple(mark_of(turn, turn[names.content]) for turn in turns)
    return () if all(mark is UNMARKED for mark in marks) else marks


def plain_turns(turns: Sequence[Mapping[str, Any]], names: Names) -> list[dict[str, Any]]:
    """Turns without faults in the fields of ``messages``."""
    return [{"role": names.roles[turn[names.role]], "content": turn[names.content]} for turn in turns]
