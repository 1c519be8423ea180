# SPDX-License-Identifier: Apache-2.0
"""Preference pairs: a prompt, the answer that was chosen, and the one that was rejected.

    {"prompt": "…", "chosen": "…", "rejected": "…"}
    {"prompt": [turns], "chosen": [turns], "rejected": [turns]}
    {"chosen": [turns], "rejected": [turns]}

Without a prompt, the turns that both begin with are it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.processor.chat import Role
from trainer.data.example import Example, Mark
from trainer.data.formats.answers import faults_of_side, is_assistants, learnt_last, turns_of
from trainer.data.media import faults_of_media, messages_of
from trainer.data.wording import fields_of

SIDES = ("chosen", "rejected")


def faults_of_pair(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a pair."""
    has_prompt = row.get("prompt") is not None
    if has_prompt:
        yield from faults_of_side(row, "prompt")
    elif not all(isinstance(row.get(side), list) for side in SIDES if side in row):
        yield f"prompt: found {fields_of(row)}; expected one, or turns in 'chosen' and 'rejected' that begin with it"
    for side in SIDES:
        yield from faults_of_side(row, side)
        turns = row.get(side)
        if isinstance(turns, list) and turns and not is_assistants(turns[-1]):
            yield f"{side}: found a last turn by {turns[-1]['role']!r}; expected the assistant's, it is the answer"
    if row.get("chosen") == row.get("rejected"):
        yield "rejected: found the same as in 'chosen'; expected another answer"
    elif not has_prompt and isinstance(row.get("chosen"), list) and not shared(row):
        yield "chosen: found no first turn that 'rejected' has too; expected both to begin with the prompt"
    yield from faults_of_media(row)


def shared(row: Mapping[str, Any]) -> list[Any]:
    """The turns that both conversations of a row without a prompt begin with, the last of neither among them."""
    chosen, rejected = row["chosen"], row.get("rejected")
    if not isinstance(rejected, list):
        return chosen  # has been said already
    same = []
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        same.append(one)
    return same


def example_of_pair(row: Mapping[str, Any], directory: Path, where: str) -> Example:
    """The two conversations of a row without faults."""
    before = shared(row) if row.get("prompt") is None else turns_of(row["prompt"], Role.user)
    given = 0 if row.get("prompt") is not None else len(before)
    chosen, rejected = (turns_of(row[side], Role.assistant)[given:] for side in SIDES)
    messages = messages_of({**row, "messages": [*before, *chosen]}, directory)
    other = messages_of({**row, "messages": [*before, *rejected]}, directory)
    marks: tuple[Mark, ...] = learnt_last(len(messages), len(chosen))
    return Example(messages, where, marks, rejected=other, field="prompt" if given == 0 else "chosen")
