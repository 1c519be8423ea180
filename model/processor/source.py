# SPDX-License-Identifier: Apache-2.0
"""Where a picture or a recording comes from: a file, its bytes, or something in memory."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from model.errors import InputError

MAX_NAME = 300  # characters of a name in a message; a file's content given as its name has many more


def named(kind: str, source: object) -> str:
    """What to call a source in a message."""
    if isinstance(source, Path | str):
        text = str(source)
        return f"{kind} '{text if len(text) <= MAX_NAME else text[:MAX_NAME] + '…'}'"
    return f"{kind} of {len(source)} bytes" if isinstance(source, bytes) else f"{kind} in memory"


def identity(source: object) -> object:
    """What makes two sources the same one: a path, the bytes, or being the same object."""
    if isinstance(source, Path | str):
        return str(source)
    return source if isinstance(source, bytes) else id(source)


def as_bytes(source: object) -> object:
    """``source``, but a file's bytes of whatever kind as ``bytes``."""
    return bytes(source) if isinstance(source, bytearray | memoryview) else source


def opened(source: Path | str | bytes, name: str) -> io.BytesIO | io.BufferedReader:
    """The content of a source, to be read and closed.

    Raises:
        InputError: There is no such file, it cannot be read, or it is empty.
    """
    if isinstance(source, bytes):
        file: io.BytesIO | io.BufferedReader = io.BytesIO(source)
        size = len(source)
    else:
        if "://" in str(source) or str(source).startswith("data:"):
            raise InputError(f"{name}: is an address; download it and give the file")
        path = Path(source)
        try:
            is_file, is_directory = path.is_file(), path.is_dir()
            # By its number, without a name: a reader would take the end of a name for more than the content.
            number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)) if is_file else -1
        except (OSError, ValueError) as error:  # a name may be too long, or hold a zero
            raise InputError(f"{name}: cannot be read ({getattr(error, 'strerror', error)})") from None
        if not is_file:
            # A whole path, as those of data rows are, starts nowhere else.
            start = "" if path.is_absolute() else f" (relative names start at {Path.cwd()})"
            found = "is a directory" if is_directory else f"no such file{start}"
            raise InputError(f"{name}: {found}; give a file")
        file, size = os.fdopen(number, "rb"), os.fstat(number).st_size
    if size == 0:
        file.close()
        raise InputError(f"{name}: is empty (0 bytes); make or fetch it again")
    return file


def contents(source: Path | str | bytes, name: str) -> bytes:
    """The bytes of a source; raises InputError as ``opened`` does."""
    with opened(source, name) as file:
        return file.read()


def digest_of(description: str, content: bytes) -> str:
    """A hash of both."""
    return hashlib.sha256(description.encode() + b"\0" + content).hexdigest()
