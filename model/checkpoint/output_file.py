# SPDX-License-Identifier: Apache-2.0
"""A large file written from its beginning to its end, past the system's page cache where there is a way.

Written through the cache, every byte is copied into pages that must be found first, and waits there for the disk: for
gigabytes that nobody reads soon this costs more processor time than all else that slicing does, and evicts what others
use. Past it the disk takes the bytes from our memory. It asks that places, lengths and addresses are whole blocks.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from model.checkpoint.blocks import Bytes

DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it, not every file system there takes it
LARGE_BYTES = 64 << 20  # smaller files are likely read soon, and the cache takes them easily
STAGED_BYTES = 4 << 20  # written at once: whole blocks of every disk


class OutputFile:
    """A new file; what is written is on its way to the disk at the latest when it is closed, not surely on it.

    Args:
        path: Where; a file there is replaced.
        nbytes: How many bytes it will have, about: a large one goes past the page cache.

    Raises:
        OSError: It cannot be made or written, such as for want of room.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.staged: Bytes = np.frombuffer(mmap.mmap(-1, STAGED_BYTES), dtype=np.uint8)  # begins with a page
        self.used = 0
        if nbytes >= LARGE_BYTES:
            self.set_direct(DIRECT)

    def __enter__(self) -> OutputFile:  # noqa: PYI034 - what checks shapes in tests cannot read Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.set_direct(0)  # what is left is no whole block
                self.hand_over()
        finally:
            os.close(self.descriptor)

    def write(self, content: Bytes) -> None:
        """Append bytes; they may be changed afterwards."""
        at = 0
        while at < len(content):
            count = min(len(content) - at, STAGED_BYTES - self.used)
            self.staged[self.used : self.used + count] = content[at : at + count]
            self.used, at = self.used + count, at + count
            if self.used == STAGED_BYTES:
                self.hand_over()

    def hand_over(self) -> None:
        """Give the system all that is staged, which may take several requests."""
        rest = self.staged[: self.used].data
        while rest:
            try:
                count = os.write(self.descriptor, rest)
            except OSError as failure:
                # A file system may admit the wish and refuse the deed; a short write leaves no whole blocks.
                if failure.errno != errno.EINVAL or not self.set_direct(0):
                    raise
            else:
                rest = rest[count:]
        self.used = 0

    def set_direct(self, flag: int) -> bool:
        """Go past the page cache, or not; whether that changed anything."""
        before = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        after = (before & ~DIRECT) | flag
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, after)
        except OSError:
            return False  # the file system has no such way
        return after != before
