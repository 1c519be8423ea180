# SPDX-License-Identifier: Apache-2.0
"""Raw rows from files of text: JSON Lines, JSON, CSV, and plain text.

These are read here, line by line and with nothing inferred: a row keeps the line it stands on, every damaged one is
told and the next is read, and no library turns ``007`` into a number or gives two columns of media one type. What is
binary is in ``tables``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from model.errors import InputError
from trainer.data.faults import Fault
from trainer.data.wording import kind

LONGEST_FIELD = 2**31 - 1  # of CSV; the library's own limit is 131,072 characters
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how files of it begin
ESCAPED_BYTES = range(0xDC80, 0xDD00)  # what Python reads bytes as that are no text, if it is to go on


@dataclass(frozen=True)
class Row:
    """A row as a file has it, and its place."""

    value: Any
    where: str


@dataclass(frozen=True)
class Piece:
    """One file, or one split of a data set, that can be read again and again.

    Args:
        name: What messages call it.
        directory: Where relative names of media start.
        read: Its rows in order, those that are none included, without the first so many: what is left out is not
            looked at if that can be.
        digest: A hash of its content.
        glance: A hash of what of it is known without reading it all.
    """

    name: str
    directory: Path
    read: Callable[[int], Iterator[Row | Fault]]
    digest: Callable[[], bytes]
    glance: Callable[[], bytes]


def read_lines(path: Path, start: int = 0) -> Iterator[Row | Fault]:
    """The values of a file of JSON Lines, the first ``start`` left out; blank lines are no rows."""
    refuse_utf_16(path)
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for number, line in islice(lines, start, None):
            yield parsed(line.rstrip(b"\r\n"), f"{path}:{number}")


def parsed(line: bytes, where: str) -> Row | Fault:
    """What a line holds, or what is wrong with it."""
    try:
        return Row(json.loads(line.decode("utf-8-sig")), where)
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return Fault(where, f"found byte {byte:#04x} at column {error.start + 1}; expected UTF-8 text")
    except json.JSONDecodeError as error:
        if nul := line.find(b"\0") + 1:
            return Fault(where, f"found a NUL byte at column {nul}; expected one object per line")
        return Fault(where, f"found no JSON ({error.msg} at column {error.colno}); expected one object per line")
    except ValueError as error:  # a number of thousands of digits
        return Fault(where, f"found no JSON that can be read ({error}); expected one object per line")
    except RecursionError:
        return Fault(where, "found lists or objects within each other a thousand deep; expected one object per line")


def read_json(path: Path, start: int = 0) -> Iterator[Row | Fault]:
    """The values of a file that is one JSON list, the first ``start`` left out.

    Raises:
        InputError: It is something else.
    """
    refuse_utf_16(path)
    content = path.read_bytes()
    lines = "; a file of one object per line is JSON Lines, and called .jsonl"
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"data: {path}:{line}: found byte {content[error.start]:#04x}; expected UTF-8 text") from None
    except json.JSONDecodeError as error:
        found = f"found no JSON ({error.msg} at line {error.lineno}, column {error.colno})"
        hint = lines if error.msg == "Extra data" else ""
        raise InputError(f"data: '{path}': {found}; expected a list of rows{hint}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: '{path}': found no JSON that can be read ({error}); expected a list of rows") from None
    if not isinstance(rows, list):
        raise InputError(f"data: '{path}': found {kind(rows)}; expected a list of rows{lines}")
    for number in range(start, len(rows)):
        yield Row(rows[number], f"{path}:row {number + 1}")


def read_csv(path: Path, start: int = 0) -> Iterator[Row | Fault]:
    """The rows of a file of comma- or tab-separated values, their fields named by its first line; all are texts.

    The first ``start`` are left out; to know where they end they are read.

    Raises:
        InputError: Its first line gives two columns one name, or cannot be read.
    """
    yield from islice(csv_rows(path), start, None)


def csv_rows(path: Path) -> Iterator[Row | Fault]:
    """All of them."""
    refuse_utf_16(path)
    csv.field_size_limit(LONGEST_FIELD)
    # Bytes that are no text are read as half of a surrogate pair each, and told row by row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        names: list[str] | None = None
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if names is None:
                    raise InputError(f"data: {where}: found no names of columns ({error})") from None
                yield Fault(where, f"row: found {wrong_quotes(error)}; expected {len(names)} fields")
                continue
            if not fields:
                continue
            if names is None:
                names = fields
                refuse_names(names, where)
            elif wrong := wrong_fields(fields, names):
                yield Fault(where, wrong)
            else:
                yield Row(dict(zip(names, fields, strict=True)), where)


def wrong_quotes(error: csv.Error) -> str:
    """What the library objects to, in words."""
    if str(error) == "unexpected end of data":
        return 'a quote (") that is closed nowhere'
    return f"no fields ({error})"


def refuse_names(names: Sequence[str], where: str) -> None:
    """Raise InputError where the first line is no list of different names."""
    if found := byte_in("".join(names)):
        raise InputError(f"data: {where}: found byte {found} in the names of columns; expected UTF-8 text")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"data: {where}: found {twice!r} twice among the columns; expected a name for each")


def wrong_fields(fields: Sequence[str], names: Sequence[str]) -> str | None:
    """What is wrong with the fields of a row, if anything is."""
    if len(fields) != len(names):
        return f"row: found {len(fields)} fields; expected {len(names)} ({', '.join(names)})"
    for name, content in zip(names, fields, strict=True):
        if found := byte_in(content):
            return f"{name}: found byte {found}; expected UTF-8 text"
        if "\0" in content:
            return f"{name}: found a NUL byte at character {content.index(chr(0)) + 1}; expected text"
    return None


def byte_in(text: str) -> str | None:
    """The first byte of ``text`` that is no text, as messages write it."""
    found = next((ord(letter) for letter in text if ord(letter) in ESCAPED_BYTES), None)
    return None if found is None else f"{found - 0xDC00:#04x}"


def read_text(path: Path, start: int = 0) -> Iterator[Row | Fault]:
    """A file of text as one row, left out if ``start`` is above 0.

    Raises:
        InputError: It is no UTF-8.
    """
    refuse_utf_16(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"data: {path}:{line}: found byte {content[error.start]:#04x}; expected UTF-8 text") from None
    if text.strip() and not start:
        yield Row({"text": text}, f"{path}:1")


def refuse_utf_16(path: Path) -> None:
    """Raise InputError for a file that begins as those of UTF-16 do: every line of it would be wrong."""
    with path.open("rb") as file:
        if file.read(2) in UTF_16:
            raise InputError(f"data: '{path}': found the first bytes of UTF-16; expected UTF-8; save it anew as that")
