# SPDX-License-Identifier: Apache-2.0
"""What one program at a time writes into: a directory that refuses others, a file that they wait for."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from model.errors import ConfigError

LOCK_FILE = ".lock"


def lock(directory: Path, told: str) -> TextIO:
    """Keep others out of ``directory`` for as long as the file that is returned stays open.

    The lock is the process's: it goes with it, however it ends. Where a file system has none, there is none.

    Args:
        directory: Which must be there.
        told: What is wrong, and what to do, if another process has it.

    Raises:
        ConfigError: Another process has it.
    """
    file = (directory / LOCK_FILE).open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(told) from None
    except OSError:
        pass
    return file


@contextmanager
def waiting_for(file: Path) -> Iterator[None]:
    """Keep others out of what is done in the block, and wait for those that are doing it.

    Args:
        file: What they agree on; it is made, and stays.
    """
    with file.open("a", encoding="utf-8") as held:
        with suppress(OSError):  # where a file system has no locks, there are none
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
