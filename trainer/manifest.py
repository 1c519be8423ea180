# SPDX-License-Identifier: Apache-2.0
"""The list of a checkpoint's files, with size and SHA-256 of each: what was written can be told from what is there.

A disk may lose what it said it kept: files cut short, bits that changed, names without content. Whoever goes on
with a checkpoint looks at all of its files first.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.checkpoint.reader import sha256

MANIFEST_FILE = "manifest.json"
HASHING_THREADS = 4  # hashing is slower than reading a fast disk, and Python waits for neither


def write_manifest(directory: Path) -> None:
    """Write down every file below ``directory``; to be done when all of them are there."""
    own = directory / MANIFEST_FILE
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != own)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        hashes = list(pool.map(sha256, files))
    listed = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": found}
        for path, found in zip(files, hashes, strict=True)
    }
    own.write_text(json.dumps({"files": listed}, indent=2) + "\n", encoding="utf-8")


def damage_of(directory: Path) -> str | None:
    """What is wrong with a checkpoint in a few words; None if every file is as it was written."""
    try:
        listed = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        sizes = {name: int(told["bytes"]) for name, told in listed.items()}
        hashes = {name: str(told["sha256"]) for name, told in listed.items()}
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST_FILE} cannot be read ({type(error).__name__})"
    if not sizes:
        return f"{MANIFEST_FILE} lists no file"
    for name, size in sizes.items():  # cheap, so before anything is read
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes, not {size}"
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        found_now = pool.map(hash_or_error, [directory / name for name in hashes])
        for (name, expected), found in zip(hashes.items(), found_now, strict=True):
            if found != expected:
                return f"{name} has other bytes than were written"
    return None


def hash_or_error(path: Path) -> str:
    """The SHA-256 of a file, or why there is none, which equals no hash."""
    try:
        return sha256(path)
    except OSError as error:
        return repr(error)
