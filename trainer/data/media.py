# SPDX-License-Identifier: Apache-2.0
"""Pictures and recordings in a row of data: in their place in a turn, or listed beside the turns.

    {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", …}]}, …]}
    {"messages": [{"role": "user", "content": "What? <image_soft_token>"}, …], "images": ["a.png"]}

A medium is a path, ``{"path": …}`` or ``{"bytes": …}`` in Base64; paths start at the data file. An item without
one, and a placeholder written as text, take the next medium of the row's list. What is null counts as left out. Where
something would be trained without its media, because they stand under a name that nobody reads, it is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.processor.chat import AUDIO_MARKS, IMAGE_MARKS, Message, Part, Role, place_media
from model.processor.media import Picture, Recording
from trainer.data.wording import faults_of_text, kind

FIELDS = {"image": "images", "audio": "audio"}  # type of an item -> the row's list of them
MARKS = {"image": IMAGE_MARKS.placeholder, "audio": AUDIO_MARKS.placeholder}
SOURCES = ("path", "bytes")
NEAR = frozenset(  # what media are called elsewhere
    name + plural
    for name in ("image", "picture", "photo", "img", "audio", "sound", "recording", "video")
    for plural in ("", "s")
)
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
    return {key: item[key] for key in SOURCES if item.get(key) is not None} or None


def source_of(medium: str | Mapping[str, Any], directory: Path) -> Path | str | bytes:
    """Where a medium without faults comes from."""
    if isinstance(medium, Mapping):
        if medium.get("bytes") is not None:
            content = medium["bytes"]  # a table's are as they are
            return content if isinstance(content, bytes) else base64.b64decode(without_breaks(content))
        medium = medium["path"]
    assert isinstance(medium, str)
    return medium if "://" in medium else directory / medium  # an address is refused when it is looked at


def listed(field: Any) -> list[Any]:
    """The media of a row's field, which may hold a single one; a cell of a table that is left empty holds none."""
    if field is None or field == "":
        return []
    return field if isinstance(field, list) else [field]


def faults_of_media(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the media listed beside the turns."""
    for name in FIELDS.values():
        for index, medium in enumerate(listed(row.get(name))):
            yield from faults_of_medium(medium, f"{name}[{index}]" if isinstance(row[name], list) else name)
    yield from faults_of_names(row, "", known=FIELDS.values())


def faults_of_names(holder: Mapping[str, Any], where: str, *, known: Collection[str] = ()) -> Iterator[str]:
    """Fields that hold something and are called like media, but by no ``known`` name; nobody would read them."""
    for name, value in holder.items():
        if name.lower() in NEAR and name not in known and value not in (None, [], {}, ""):
            yield (
                f"{where}{name}: found {kind(value)}; expected media in {' or '.join(FIELDS.values())} beside"
                " 'messages', or as items of a turn's content, and none by another name"
            )


def faults_of_items(content: Sequence[Any], field_name: str) -> Iterator[str]:
    """What is wrong with a turn's content given as a list of items."""
    for index, item in enumerate(content):
        where = f"{field_name}[{index}]"
        if not isinstance(item, dict):
            yield f"{where}: found {kind(item)}; expected an object with 'type'"
            continue
        form = item.get("type")
        if form == "text":
            yield from faults_of_text(item, "text", where)
            yield from faults_of_keys(item, where, allowed=("type", "text"))
        elif isinstance(form, str) and form in FIELDS:
            yield from faults_of_keys(item, where, allowed=("type", form, *SOURCES))
            yield from faults_of_number(item, where, among=(form, *SOURCES))
            if (medium := given(item)) is not None:
                yield from faults_of_medium(medium, where)
        else:
            found = "none" if "type" not in item else repr(form) if isinstance(form, str) else kind(form)
            yield f"{where}.type: found {found}; expected text, {', '.join(FIELDS)}"


def faults_of_keys(item: Mapping[str, Any], where: str, *, allowed: Sequence[str]) -> Iterator[str]:
    """Keys of ``item`` that hold something nobody would read."""
    for key, value in item.items():
        if key not in allowed and value is not None:
            yield f"{where}.{key}: found {kind(value)}; expected none but {', '.join(allowed)}"


def faults_of_number(item: Mapping[str, Any], where: str, *, among: Sequence[str]) -> Iterator[str]:
    """Several media where one is meant."""
    several = [key for key in among if item.get(key) is not None]
    if len(several) > 1:
        yield f"{where}: found {' and '.join(map(repr, several))}; expected one of them"


def faults_of_medium(medium: Any, where: str) -> Iterator[str]:
    """What is wrong with a reference to a medium, without looking at what it refers to."""
    written = medium
    if isinstance(medium, dict):
        if all(medium.get(key) is None for key in SOURCES):
            yield f"{where}: found {kind(medium)} without 'path' and 'bytes'; expected {ONE_MEDIUM}"
            return
        yield from faults_of_keys(medium, where, allowed=SOURCES)
        yield from faults_of_number(medium, where, among=SOURCES)
        if (content := medium.get("bytes")) is not None:
            yield from faults_of_base64(content, f"{where}.bytes")
            return
        written = medium["path"]
    if not isinstance(written, str):
        yield f"{where}: found {kind(written)}; expected {ONE_MEDIUM}"
    elif not written:
        yield f"{where}: found an empty path; expected {ONE_MEDIUM}"


def faults_of_base64(content: Any, where: str) -> Iterator[str]:
    """What is wrong with bytes, which are written as text unless a table holds them."""
    if isinstance(content, bytes):
        return
    if not isinstance(content, str):
        yield f"{where}: found {kind(content)}; expected a string of Base64"
        return
    try:
        base64.b64decode(without_breaks(content), validate=True)
    except (binascii.Error, ValueError) as error:
        yield f"{where}: found no Base64 ({error}); expected the file's bytes in it"


def without_breaks(content: str) -> str:
    """Base64 without the line breaks that many programs put into it."""
    return "".join(content.split())


def fingerprint_of_media(media: Iterable[Picture | Recording], digests: Mapping[Picture | Recording, str]) -> str:
    """A hash of the content of media in order, of which the digests are known."""
    return hashlib.sha256("".join(digests[medium] for medium in media).encode()).hexdigest()
