# SPDX-License-Identifier: Apache-2.0
"""A conversation as Gemma 3n reads it, and which of its characters the assistant wrote.

There is no system turn: the system text stands before the first user's, with an empty line between.
``CHAT_TEMPLATE`` says the same in the language of other libraries, for the files written beside weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from model.errors import InputError
from model.processor.tokenizer import BOS, END_OF_TURN, START_OF_TURN

CHAT_TEMPLATE = """\
{{ bos_token }}{% set prefix = '' %}{% if messages[0]['role'] == 'system' %}\
{% set prefix = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}{% endif %}\
{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant') }}{% endif %}\
{{ '<start_of_turn>' + ('user' if message['role'] == 'user' else 'model') + '\\n' }}\
{{ (prefix if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


class Role(StrEnum):
    """Who speaks. ``model``, Gemma's own word, is read as ``assistant``."""

    system = "system"
    user = "user"
    assistant = "assistant"

    @classmethod
    def _missing_(cls, value: object) -> Role | None:
        return cls.assistant if value == "model" else None


@dataclass(frozen=True)
class Message:
    """What one of them said."""

    role: Role
    text: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; ``assistant`` holds half-open character ranges, ``<end_of_turn>`` included."""

    text: str
    assistant: tuple[tuple[int, int], ...]


def render(messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Rendered:
    """Write a conversation in Gemma 3n's turn format, ``<bos>`` first.

    White space around what users and assistants say is dropped; the system text stays as it is. With
    ``add_generation_prompt`` the text ends where the assistant's next words go.

    Raises:
        InputError: User and assistant do not take turns, the user first; or a text holds a turn mark.

    Source: the chat template published with Gemma 3n.
    """
    check(messages, add_generation_prompt=add_generation_prompt)
    has_system = messages[0].role is Role.system
    prefix = messages[0].text + "\n\n" if has_system else ""
    text, assistant = BOS, []
    for message in messages[1:] if has_system else messages:
        speaker = "model" if message.role is Role.assistant else "user"
        text += f"{START_OF_TURN}{speaker}\n{prefix}"
        start = len(text)
        text += message.text.strip() + END_OF_TURN
        if message.role is Role.assistant:
            assistant.append((start, len(text)))
        text += "\n"
        prefix = ""
    if add_generation_prompt:
        text += f"{START_OF_TURN}model\n"
    return Rendered(text, tuple(assistant))


def check(messages: Sequence[Message], *, add_generation_prompt: bool) -> None:
    """Raise InputError where a conversation cannot be rendered."""
    first = 1 if messages and messages[0].role is Role.system else 0
    if len(messages) == first:
        raise InputError("conversation: no user message; give at least one")
    for number, message in enumerate(messages[first:]):
        expected = Role.assistant if number % 2 else Role.user
        if message.role is not expected:
            raise InputError(
                f"conversation: message {number + first} is by '{message.role}' where '{expected}' should speak;"
                " one optional system message, then user and assistant in turn"
            )
    for number, message in enumerate(messages):
        for mark in (BOS, START_OF_TURN, END_OF_TURN):
            # As text it would become the real token, and end the turn or put words in someone's mouth.
            if mark in message.text:
                raise InputError(f"conversation: message {number} ({message.role}) contains '{mark}'; take it out")
    if add_generation_prompt and messages[-1].role is Role.assistant:
        raise InputError("conversation: the last message is the assistant's; a reply needs a user message before it")
