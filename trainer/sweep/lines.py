# SPDX-License-Identifier: Apache-2.0
"""Files that lines are added to, each on the disk before anything goes on: a killed process leaves whole ones."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
from pathlib import Path

from model.checkpoint.directory import flush_entry
from model.errors import CheckpointError


def append(path: Path, lines: str) -> None:
    """Add lines to a file, and wait until they are on the disk.

    Raises:
        CheckpointError: The disk is full, or fails otherwise. What was there before is as it was.
    """
    is_new = not path.exists()
    before = 0 if is_new else path.stat().st_size
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            content = memoryview(lines.encode())
            while content:  # a nearly full disk may take a part
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        if is_new:
            flush_entry(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        free = shutil.disk_usage(path.parent.parent).free
        raise CheckpointError(
            f"{path}: results cannot be written ({error}; {free / 1e9:.2f} GB are free there); make room, and go on"
            " with resume=true: what was measured before is kept"
        ) from None


def cut_to_whole_lines(path: Path) -> None:
    """Cut off what a killed process left of a last line; a machine that lost its power may leave a damaged one."""
    if not path.exists() or not (size := path.stat().st_size):
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1
        begin = content.rfind(b"\n", 0, max(end - 1, 0)) + 1
        last = content[begin:end]
    try:
        json.loads(last or b"null")
    except ValueError:
        end = begin
    if end < size:
        os.truncate(path, end)
        flush_entry(path)
