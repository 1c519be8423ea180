# SPDX-License-Identifier: Apache-2.0
"""One thing to learn from, before any tokenizer has seen it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from model.processor.chat import Message, Part, Role
from model.processor.media import Picture, Recording


@dataclass(frozen=True)
class Mark:
    """What a row itself says of a turn: whether it is learnt, or which characters of it.

    ``spans`` are half-open, in characters of the turn's texts as they stand in a row, one behind the other.
    """

    train: bool | None = None
    spans: tuple[tuple[int, int], ...] | None = None


UNMARKED = Mark()
TEXT = b"text"  # a kind of part of a turn


@dataclass(frozen=True)
class Example:
    """A conversation, or a text, and where it came from (``file:line``) for whoever has to look at it.

    Args:
        messages: The turns; of a text one, which is no turn.
        where: Its place.
        marks: What the row says of each turn; empty where it says nothing of any.
        is_text: Whether it is a text to be continued, all of which is learnt.
        rejected: The same conversation with the answer that was not preferred, of a pair.
        field: What a row of its format calls it.
    """

    messages: tuple[Message, ...]
    where: str
    marks: tuple[Mark, ...] = ()
    is_text: bool = False
    rejected: tuple[Message, ...] | None = None
    field: str = "messages"

    @property
    def answers(self) -> tuple[str, ...]:
        """What the assistant says, turn by turn, without space around it."""
        return tuple(message.text.strip() for message in self.messages if message.role is Role.assistant)

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """Those of all turns, whole."""
        return tuple(recording for message in self.messages for recording in message.recordings)

    @property
    def shows_media(self) -> bool:
        """Whether there is an image or sound in it, the answer that was not preferred included."""
        messages = (*self.messages, *(self.rejected or ()))
        return any(not isinstance(part, str) for message in messages for part in message.parts)

    def digest(self) -> bytes:
        """A hash of what is said and shown: the same for the same content, in whatever format and place.

        Texts that follow each other count as the one that they are read as. Media in files count by their files'
        names, so that moving a directory changes nothing. Of a pair its chosen
        side counts, which is what is learnt: one answer may stand beside several that were rejected.
        """
        digest = hashlib.sha256()
        for message in self.messages:
            for kind, content in ((message.role.encode(), b""), *contents_of(message.parts)):
                # Each with its length: "ab" and "c" are not "a" and "bc".
                digest.update(b"%s %d " % (kind, len(content)) + content)
        return digest.digest()


def contents_of(parts: Iterable[Part]) -> Iterator[tuple[bytes, bytes]]:
    """Those of the parts of a turn, texts next to each other as one, and empty ones left out."""
    for kind, alike in groupby(map(content_of, parts), key=lambda found: found[0]):
        if kind != TEXT:
            yield from alike
        elif text := b"".join(content for _, content in alike):
            yield kind, text


def content_of(part: Part) -> tuple[bytes, bytes]:
    """What kind of part of a turn it is, and its content."""
    if isinstance(part, str):
        return TEXT, part.strip().encode()
    source = part.source
    assert isinstance(source, Path | str | bytes), "rows refer to media, they hold no arrays"
    kind = b"picture" if isinstance(part, Picture) else b"recording"
    return kind, source if isinstance(source, bytes) else Path(source).name.encode()
