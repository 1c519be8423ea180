# SPDX-License-Identifier: Apache-2.0
"""A conversation as Gemma 3n reads it, and which of its characters the assistant wrote.

There is no system turn: the system text stands before the first user's, with an empty line between.
A picture or a recording stands in the text as a run of placeholders, written out before anything is
tokenised, because the line breaks around it join with its neighbours'.
``CHAT_TEMPLATE`` says the same in the language of other libraries, for the files written beside weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from model.errors import InputError, counted
from model.processor.media import Picture, Recording
from model.processor.tokenizer import BOS, END_OF_TURN, START_OF_TURN

CHAT_TEMPLATE = """\
{{ bos_token }}{% set prefix = '' %}{% if messages[0]['role'] == 'system' %}\
{% set said = messages[0]['content'] %}\
{% set prefix = (said if said is string else said[0]['text'] if said else '') + '\\n\\n' %}\
{% set messages = messages[1:] %}{% endif %}\
{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate user/assistant') }}{% endif %}\
{{ '<start_of_turn>' + ('user' if message['role'] == 'user' else 'model') + '\\n' }}\
{{ prefix if loop.first else '' }}\
{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}\
{% for item in message['content'] %}\
{% if item['type'] == 'image' %}{{ '<image_soft_token>' }}\
{% elif item['type'] == 'audio' %}{{ '<audio_soft_token>' }}\
{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}\
{% endfor %}{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


class Role(StrEnum):
    """Who speaks. ``model``, Gemma's own word, is read as ``assistant``."""

    system = "system"
    user = "user"
    assistant = "assistant"

    @classmethod
    def _missing_(cls, value: object) -> Role | None:
        return cls.assistant if value == "model" else None


BLANK = "\n\n"  # around a medium, and behind the system text
Part = str | Picture | Recording


def role_named(name: object) -> Role:
    """Who speaks under a name, or InputError."""
    try:
        return Role(name)
    except ValueError:
        allowed = ", ".join(Role)
        raise InputError(f"message: its role is {name!r}; allowed are {allowed}, model") from None


@dataclass(frozen=True)
class Message:
    """What one of them said: a text, or texts, pictures and recordings in their order."""

    role: Role
    content: str | tuple[Part, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.role, Role):
            object.__setattr__(self, "role", role_named(self.role))
        parts = tuple(self.content) if isinstance(self.content, list | tuple) else (self.content,)
        if wrong := [type(part).__name__ for part in parts if not isinstance(part, str | Picture | Recording)]:
            raise InputError(
                f"message: its content has a {wrong[0]}; it must be a text, or texts, pictures and"
                " recordings in their order"
            )
        if isinstance(self.content, list):
            object.__setattr__(self, "content", parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts; a text alone is one."""
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """What was said in words, with nothing for the media; of several texts each without space around it."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.strip() for part in self.content if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """The recordings, in order."""
        return tuple(part for part in self.parts if isinstance(part, Recording))


@dataclass(frozen=True)
class MediaMarks:
    """How one item of a medium is written: the text of its tokens, and how many placeholders make a run."""

    placeholder: str
    begin: str
    end: str
    per_item: int

    @property
    def run(self) -> str:
        """One item, delimiters included; an empty line stands on either side of it."""
        return self.begin + self.placeholder * self.per_item + self.end


IMAGE_MARKS = MediaMarks("<image_soft_token>", "<start_of_image>", "<end_of_image>", per_item=256)  # as published
AUDIO_MARKS = MediaMarks("<audio_soft_token>", "<start_of_audio>", "<end_of_audio>", per_item=188)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the media its runs of placeholders stand for, in order.

    ``assistant`` holds the half-open character ranges of the assistant's words, ``<end_of_turn>`` included;
    ``runs`` those of the media, delimiters included and the empty lines around them not.
    """

    text: str
    assistant: tuple[tuple[int, int], ...]
    pictures: tuple[Picture, ...] = ()
    recordings: tuple[Recording, ...] = ()
    runs: tuple[tuple[int, int], ...] = ()


def render(
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    image: MediaMarks | None = None,
    audio: MediaMarks | None = None,
) -> Rendered:
    """Write a conversation in Gemma 3n's turn format, ``<bos>`` first.

    White space around each text of users and assistants is dropped; the system text stays as it is. With
    ``add_generation_prompt`` the text ends where the assistant's next words go.

    Args:
        messages: An optional system message, then user and assistant in turn.
        add_generation_prompt: Whether the assistant is to speak next.
        image: How pictures are written; None for a model that has no vision tower.
        audio: How recordings are written; None for a model that has no audio tower.

    Raises:
        InputError: User and assistant do not take turns, the user first; a text holds a mark of turns or
            media; or there are media that the model does not take.

    Source: the chat template and the processor published with Gemma 3n.
    """
    check(messages, add_generation_prompt=add_generation_prompt)
    for number, message in enumerate(messages):
        check_parts(message, f"conversation: message {number} ({message.role})", image=image, audio=audio)
    has_system = messages[0].role is Role.system
    prefix = "".join(map(str, messages[0].parts)) + BLANK if has_system else ""
    text, assistant, runs = BOS, [], []
    for message in messages[1:] if has_system else messages:
        speaker = "model" if message.role is Role.assistant else "user"
        text += f"{START_OF_TURN}{speaker}\n{prefix}"
        start = len(text)
        parts = [part.strip() if isinstance(part, str) else part for part in message.parts]
        text, found = written_parts(parts, text, image=image, audio=audio)
        runs.extend(found)
        text += END_OF_TURN
        if message.role is Role.assistant:
            assistant.append((start, len(text)))
        text += "\n"
        prefix = ""
    if add_generation_prompt:
        text += f"{START_OF_TURN}model\n"
    pictures = tuple(picture for message in messages for picture in message.pictures)
    recordings = tuple(recording for message in messages for recording in message.recordings)
    return Rendered(text, tuple(assistant), pictures, recordings, tuple(runs))


def render_text(parts: Sequence[Part], *, image: MediaMarks | None = None, audio: MediaMarks | None = None) -> Rendered:
    """Write a text without turns, as a model that was not tuned for conversation continues it.

    Texts stay as they are, ``<bos>`` before the first; each medium becomes a run of placeholders.

    Raises:
        InputError: A text holds a mark of turns or media, or there are media that the model does not take.

    Source: the processor published with Gemma 3n, given a text.
    """
    message = Message(Role.user, tuple(parts))
    check_parts(message, "text", image=image, audio=audio)
    text, runs = written_parts(parts, BOS, image=image, audio=audio)
    return Rendered(text, (), message.pictures, message.recordings, runs)


def written_parts(
    parts: Sequence[Part], text: str, *, image: MediaMarks | None, audio: MediaMarks | None
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """``text`` with the parts behind it, and where the runs of media stand in it."""
    runs = []
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        marks = image if isinstance(part, Picture) else audio
        assert marks is not None, "checked before anything is written"
        start = len(text) + len(BLANK)
        runs.append((start, start + len(marks.run)))
        text += f"{BLANK}{marks.run}{BLANK}"
    return text, tuple(runs)


def check(messages: Sequence[Message], *, add_generation_prompt: bool) -> None:
    """Raise InputError where a conversation has no user message, or they do not take turns."""
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
    if add_generation_prompt and messages[-1].role is Role.assistant:
        raise InputError("conversation: the last message is the assistant's; a reply needs a user message before it")


def check_parts(message: Message, where: str, *, image: MediaMarks | None, audio: MediaMarks | None) -> None:
    """Raise InputError where a message holds what cannot be written, or would be read as something else."""
    marks = {BOS, START_OF_TURN, END_OF_TURN}
    for known in (IMAGE_MARKS, AUDIO_MARKS, image, audio):
        marks |= {known.placeholder, known.begin, known.end} if known else set()
    # As text it would become the real token: end the turn, put words in someone's mouth, or stand for an
    # image that is not there. Looked for in the joined text, so that two parts cannot make one either.
    if found := next((mark for mark in sorted(marks) if mark in message.text), None):
        raise InputError(f"{where} contains '{found}'; take it out")
    for part in message.parts:
        if isinstance(part, str):
            continue
        if message.role is Role.system:
            raise InputError(f"{where} has {part}; media belong in a user message")
        if (image if isinstance(part, Picture) else audio) is None:
            tower = "vision" if isinstance(part, Picture) else "audio"
            raise InputError(
                f"{where} has {part}, but the model has no {tower} tower; leave it out, or take a model that has one"
            )
    if message.role is Role.system and len(message.parts) != 1:
        raise InputError(f"{where} has {len(message.parts)} parts; give its text as one")


def place_media(
    messages: Sequence[Message],
    pictures: Sequence[Picture] = (),
    recordings: Sequence[Recording] = (),
    *,
    image: str = IMAGE_MARKS.placeholder,
    audio: str = AUDIO_MARKS.placeholder,
) -> tuple[Message, ...]:
    """Put media given beside a conversation where its texts say ``<image_soft_token>`` and ``<audio_soft_token>``.

    A text with placeholders in it becomes texts and media in order, as if it had been given so; media
    already in their place stay there, and count for nothing.

    Raises:
        InputError: There are more or fewer media of a kind than placeholders.
    """
    given = {image: list(pictures), audio: list(recordings)}
    for mark, media in given.items():
        places = sum(part.count(mark) for message in messages for part in message.parts if isinstance(part, str))
        if places != len(media):
            kind = "image" if mark == image else "recording"
            raise InputError(
                f"conversation: {counted(len(media), kind)}, but its text has {counted(places, 'placeholder')};"
                f" each {kind} needs its own {mark}"
            )
    return tuple(replace(message, content=filled(message, given)) for message in messages)


def filled(message: Message, given: dict[str, list[Picture] | list[Recording]]) -> str | tuple[Part, ...]:
    """The content of a message, the next of the given media for every mark in its texts."""
    if not any(mark in part for part in message.parts if isinstance(part, str) for mark in given):
        return message.content
    parts: list[Part] = []
    for part in message.parts:
        pieces = re.split("(" + "|".join(map(re.escape, given)) + ")", part) if isinstance(part, str) else [part]
        parts.extend(given[piece].pop(0) if isinstance(piece, str) and piece in given else piece for piece in pieces)
    return tuple(part for part in parts if part != "")
