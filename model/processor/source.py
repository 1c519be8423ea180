# SPDX-License-Identifier: Apache-2.0
"""Where a picture or a recording comes from: a file, its bytes, or something in memory."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from model.errors import InputError


def named(kind: str, source: object) -> str:
    """What to call a source in a message."""
    if isinstance(source, Path | str):
        return f"{kind} '{source}'"
    return f"{kind} of {len(source)} bytes" if isinstance(source, bytes) else f"{kind} in memory"


def identity(source: object) -> object:
    """What makes two sources the same one: a path, the bytes, or being the same object."""
    if isinstance(source, Path | str):
        return str(source)
    return source if isinstance(source, bytes) else id(source)


def opened(source: Path | str | bytes, name: str) -> io.BytesIO | io.BufferedReader:
    """The content of a source, to be read and closed.

    Raises:
        InputError: There is no such file, it cannot be read, or it is empty.
    """
    if isinstance(source, bytes):
        file: io.BytesIO | io.BufferedReader = io.BytesIO(source)
        size = len(source)
    else:
        if "://" in str(source):
            raise InputError(f"{name}: is an address; download it and give the file")
        path = Path(source)
        if not path.is_file():
            found = "is a directory" if path.is_dir() else f"no such file (relative names start at {Path.cwd()})"
            raise InputError(f"{name}: {found}; give a file")
        try:
            file, size = path.open("rb"), path.stat().st_size
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from None
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
