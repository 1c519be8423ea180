# SPDX-License-Identifier: Apache-2.0
"""Conversations as OpenAI writes them, and as ShareGPT does.

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}], "system": "…"}

``media`` says how images and sound are written in both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.processor.chat import Role
from trainer.data.example import UNMARKED, Example
from trainer.data.formats.turns import MARKS, OPENAI, Names, faults_of_turns, marks_of, plain_turns
from trainer.data.media import faults_of_media, messages_of
from trainer.data.wording import faults_of_own_text

SHAREGPT = Names(
    "from", "value",
    {"human": Role.user, "gpt": Role.assistant, "system": Role.system}
    | {"user": Role.user, "assistant": Role.assistant, "model": Role.assistant, "chatgpt": Role.assistant},
)  # fmt: skip
TAUGHT_NOTHING = "found no assistant turn; expected at least one, it is what is learnt"


def faults_of_messages(row: Mapping[str, Any], roles: Collection[Role]) -> Iterator[str]:
    """What is wrong with a row of OpenAI's."""
    yield from faults_of_turns(row, "messages", OPENAI)
    yield from faults_of_lesson(row.get("messages"), "messages", OPENAI, roles)
    yield from faults_of_media(row)


def example_of_messages(row: Mapping[str, Any], directory: Path, where: str) -> Example:
    """The conversation of a row without faults."""
    return Example(messages_of(row, directory), where, marks_of(row["messages"], OPENAI))


def faults_of_sharegpt(row: Mapping[str, Any], roles: Collection[Role]) -> Iterator[str]:
    """What is wrong with a row of ShareGPT's."""
    yield from faults_of_turns(row, "conversations", SHAREGPT)
    if row.get("system") is not None:
        yield from faults_of_own_text(row, "system")
        turns = row.get("conversations")
        if row["system"] and isinstance(turns, list) and turns and is_by(turns[0], {Role.system}, SHAREGPT):
            yield "system: found a text and a turn of the system's; expected one of them"
    yield from faults_of_lesson(row.get("conversations"), "conversations", SHAREGPT, roles)
    yield from faults_of_media(row)


def example_of_sharegpt(row: Mapping[str, Any], directory: Path, where: str) -> Example:
    """The conversation of a row without faults."""
    marks = marks_of(row["conversations"], SHAREGPT)
    turns = plain_turns(row["conversations"], SHAREGPT)
    if row.get("system"):
        turns.insert(0, {"role": Role.system, "content": row["system"]})
        marks = marks and (UNMARKED, *marks)
    return Example(messages_of({**row, "messages": turns}, directory), where, marks, field="conversations")


def faults_of_lesson(turns: Any, field: str, names: Names, roles: Collection[Role]) -> Iterator[str]:
    """Whether there is nothing to learn: no turn by one of ``roles``, and none that says that it is learnt."""
    if not isinstance(turns, list) or not turns:
        return
    if not any(is_by(turn, roles, names) or says_so(turn) for turn in turns):
        is_usual = set(roles) == {Role.assistant}
        found = f"found no turn by {' or '.join(roles)}; expected at least one (data.supervise.roles)"
        yield f"{field}: {TAUGHT_NOTHING if is_usual else found}"


def is_by(turn: Any, roles: Collection[Role], names: Names) -> bool:
    """Whether one of ``roles`` speaks; a turn that nobody can tell the role of counts as no one's."""
    role = turn.get(names.role) if isinstance(turn, dict) else None
    return (names.roles.get(role) if isinstance(role, str) else None) in roles


def says_so(turn: Any) -> bool:
    """Whether a turn itself asks to be learnt, or is too wrong to say."""
    return not isinstance(turn, dict) or any(turn.get(key) for key in MARKS)
