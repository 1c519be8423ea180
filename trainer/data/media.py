# SPDX-License-Identifier: Apache-2.0
"""Pictures and recordings in a row of data: in their place in a turn, or listed beside the turns.

    {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", …}]}, …]}
    {"messages": [{"role": "user", "content": "What? <image_soft_token>"}, …], "images": ["a.png"]}

A medium is a path, ``{"path": …}`` or ``{"bytes": …}`` in Base64; paths start at the data file. An item without
one, and a placeholder written as text, take the next medium of the row's list.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.processor.chat import AUDIO_MARKS, IMAGE_MARKS, Message, Part, Role, place_media
from model.processor.media import Picture, Recording
from trainer.data.wording import faults_of_text, kind

FIELDS = {"image": "images", "audio": "audio"}  # type of an item -> the row's list of them
MARKS = {"image": IMAGE_MARKS.placeholder, "audio": AUDIO_MARKS.placeholder}
ONE_MEDIUM = 'a path, {"path": …} or {"bytes": …} in Base64'


def messages_of(row: Mapping[str, Any], directory: Path) -> tuple[Message, ...]:
    """The turns of a row without faults, its media in their places.

    Raises:
        InputError: There are more or fewer media than places for them.
    """
    messages = [Message(Role(turn["role"]), content_of(turn["content"], directory)) for turn in row["messages"]]
    pictures = [Picture(source_of(medium, directory)) for medium in listed(row.get(FIELDS["image"]))]
    recordings = [Recording(source_of(medium, directory)) for medium in listed(row.get(FIELDS["audio"]))]
    return place_media(messages, pictures, recordings)


def content_of(content: str | Sequence[Mapping[str, Any]], directory: Path) -> str | tuple[Part, ...]:
    """What a turn says; where it names no medium for an item, the placeholder stands."""
    if isinstance(content, str):
        return content
    parts: list[Part] = []
    for item in content:
        if item["type"] == "text":
            parts.append(item["text"])
        elif (medium := given(item)) is None:
            parts.append(MARKS[item["type"]])
        else:
            source = source_of(medium, directory)
            parts.append(Picture(source) if item["type"] == "image" else Recording(source))
    return tuple(parts)


def given(item: Mapping[str, Any]) -> Any:
    """The medium that an item names itself; None if it takes the next one of the row's."""
    own = item.get(item["type"])
    if own is not None:
        return own
    return {key: item[key] for key in ("path", "bytes") if item.get(key) is not None} or None


def source_of(medium: str | Mapping[str, Any], directory: Path) -> Path | str | bytes:
    """Where a medium without faults comes from."""
    if isinstance(medium, Mapping):
        if medium.get("bytes") is not None:
            return base64.b64decode(medium["bytes"])
        medium = medium["path"]
    assert isinstance(medium, str)
    return medium if "://" in medium else directory / medium  # an address is refused when it is looked at


def listed(field: Any) -> list[Any]:
    """The media of a row's field, which may hold a single one."""
    if field is None:
        return []
    return field if isinstance(field, list) else [field]


def faults_of_media(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the media listed beside the turns."""
    for name in FIELDS.values():
        for index, medium in enumerate(listed(row.get(name))):
            yield from faults_of_medium(medium, f"{name}[{index}]" if isinstance(row[name], list) else name)


def faults_of_items(content: Sequence[Any], field_name: str) -> Iterator[str]:
    """What is wrong with a turn's content given as a list of items."""
    for index, item in enumerate(content):
        where = f"{field_name}[{index}]"
        if not isinstance(item, dict):
            yield f"{where}: found {kind(item)}; expected an object with 'type'"
        elif item.get("type") == "text":
            yield from faults_of_text(item, "text", where)
        elif item.get("type") in FIELDS:
            if (medium := given(item)) is not None:
                yield from faults_of_medium(medium, where)
        else:
            found = repr(item["type"]) if "type" in item else "none"
            yield f"{where}.type: found {found}; expected text, {', '.join(FIELDS)}"


def faults_of_medium(medium: Any, where: str) -> Iterator[str]:
    """What is wrong with a reference to a medium, without looking at what it refers to."""
    written = medium
    if isinstance(medium, dict):
        if (content := medium.get("bytes")) is not None:
            yield from faults_of_base64(content, f"{where}.bytes")
            return
        written = medium.get("path")
        if written is None:
            yield f"{where}: found {kind(medium)} without 'path' and 'bytes'; expected {ONE_MEDIUM}"
            return
    if not isinstance(written, str):
        yield f"{where}: found {kind(written)}; expected {ONE_MEDIUM}"
    elif not written:
        yield f"{where}: found an empty path; expected {ONE_MEDIUM}"


def faults_of_base64(content: Any, where: str) -> Iterator[str]:
    """What is wrong with bytes written as text."""
    if not isinstance(content, str):
        yield f"{where}: found {kind(content)}; expected a string of Base64"
        return
    try:
        base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        yield f"{where}: found no Base64 ({error}); expected the file's bytes in it"


def fingerprint_of_media(media: Iterable[Picture | Recording], digests: Mapping[Picture | Recording, str]) -> str:
    """A hash of the content of media in order, of which the digests are known."""
    return hashlib.sha256("".join(digests[medium] for medium in media).encode()).hexdigest()
