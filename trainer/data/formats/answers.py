# SPDX-License-Identifier: Apache-2.0
"""Rows of one question and its answer: Alpaca's, and a prompt with its completion.

    {"instruction": "Translate.", "input": "chat", "output": "cat", "system": "…"}
    {"prompt": "Translate: chat", "completion": "cat"}
    {"prompt": [{"role": "user", "content": "…"}], "completion": [{"role": "assistant", "content": "…"}]}

Texts become turns of user and assistant. Alpaca's input, if there is any, stands behind the instruction with an empty
line between. Of a prompt and its completion the completion alone is learnt, whoever speaks in the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.processor.chat import Role
from trainer.data.example import Example, Mark
from trainer.data.formats.turns import MARKS, OPENAI, faults_of_turns, marks_of
from trainer.data.media import faults_of_media, messages_of
from trainer.data.wording import faults_of_own_text, kind

BETWEEN = "\n\n"  # instruction and input


def faults_of_alpaca(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a row of Alpaca's."""
    yield from faults_of_own_text(row, "instruction", blank=False)
    for name in ("input", "system"):
        if row.get(name) is not None:
            yield from faults_of_own_text(row, name)
    yield from faults_of_own_text(row, "output", blank=False)
    if row.get("history"):
        yield f"history: found {kind(row['history'])}; expected none (several turns are written as 'messages')"
    yield from faults_of_media(row)


def example_of_alpaca(row: Mapping[str, Any], directory: Path, where: str) -> Example:
    """The conversation of a row without faults."""
    given = (row.get("input") or "").strip()
    asked = row["instruction"].strip() + (BETWEEN + given if given else "")
    turns = [{"role": Role.user, "content": asked}, {"role": Role.assistant, "content": row["output"]}]
    if row.get("system"):
        turns.insert(0, {"role": Role.system, "content": row["system"]})
    return Example(messages_of({**row, "messages": turns}, directory), where, field="instruction")


def faults_of_prompt(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a row of a prompt and its completion."""
    yield from faults_of_side(row, "prompt")
    yield from faults_of_side(row, "completion")
    turns = row.get("completion")
    if isinstance(turns, list) and turns and all(not is_assistants(turn) for turn in turns):
        yield "completion: found no assistant turn; expected at least one, it is what is learnt"
    yield from faults_of_media(row)


def faults_of_side(row: Mapping[str, Any], field: str) -> Iterator[str]:
    """What is wrong with one side of an answer: a text, or turns."""
    if isinstance(row.get(field), list):
        yield from faults_of_turns(row, field, OPENAI)
    else:
        yield from faults_of_own_text(row, field, blank=False, expected="a string or a list of turns")


def is_assistants(turn: Any) -> bool:
    """Whether a turn is the assistant's, or too wrong to say."""
    return not isinstance(turn, dict) or turn.get("role") in ("assistant", "model") or not turn.get("role")


def example_of_prompt(row: Mapping[str, Any], directory: Path, where: str) -> Example:
    """The conversation of a row without faults."""
    before, after = turns_of(row["prompt"], Role.user), turns_of(row["completion"], Role.assistant)
    messages = messages_of({**row, "messages": [*before, *after]}, directory)
    marks = list(learnt_last(len(messages), len(after)))
    # What a turn says itself goes before what its place says.
    for index, turn in enumerate([*before, *after]):
        if any(turn.get(key) is not None for key in MARKS):
            (marks[index],) = marks_of([turn], OPENAI) or (marks[index],)
    return Example(messages, where, tuple(marks), field="prompt")


def turns_of(side: str | list[dict[str, Any]], role: Role) -> list[dict[str, Any]]:
    """One side of an answer as turns; a text is one by ``role``."""
    return [{"role": role, "content": side}] if isinstance(side, str) else side


def learnt_last(number: int, answers: int) -> tuple[Mark, ...]:
    """That the last ``answers`` of a number of turns are learnt as ``data.supervise`` says, and no other."""
    return (*(Mark(train=False),) * (number - answers), *(Mark(),) * answers)
