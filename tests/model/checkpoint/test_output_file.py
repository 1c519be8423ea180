# SPDX-License-Identifier: Apache-2.0
"""What goes past the page cache is what was given, whatever its size and whatever the file system allows."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import output_file
from model.checkpoint.output_file import DIRECT, OutputFile

BLOCK = 4096


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are large from two blocks on, which are written at once."""
    monkeypatch.setattr(output_file, "LARGE_BYTES", 2 * BLOCK)
    monkeypatch.setattr(output_file, "STAGED_BYTES", 2 * BLOCK)


def is_direct(file: OutputFile) -> bool:
    """Whether the page cache is passed by."""
    return bool(DIRECT and fcntl.fcntl(file.descriptor, fcntl.F_GETFL) & DIRECT)


def write(path: Path, size: int, piece: int) -> bytes:
    """Write random bytes in pieces, from memory that is used again; give the bytes."""
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    with OutputFile(path, size) as file:
        for at in range(0, size, piece):
            lent = content[at : at + piece].copy()
            file.write(lent)
            lent[:] = 0
    return content.tobytes()


@pytest.mark.parametrize("piece", [1000, BLOCK, 2 * BLOCK, 5 * BLOCK + 1])
@pytest.mark.parametrize("size", [0, 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 7 * BLOCK + 13])
def test_files_of_any_size_hold_what_was_given(tmp_path: Path, size: int, piece: int) -> None:
    content = write(tmp_path / "file", size, piece)
    assert (tmp_path / "file").read_bytes() == content


def test_a_longer_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(9 * BLOCK))
    content = write(tmp_path / "file", 3 * BLOCK + 1, BLOCK)
    assert (tmp_path / "file").read_bytes() == content


def test_large_files_go_past_the_cache_where_the_file_system_can(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "small", 2 * BLOCK - 1) as file:
        assert not is_direct(file)
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | DIRECT))
        possible = bool(DIRECT)
    except OSError:
        possible = False
    with OutputFile(tmp_path / "large", 2 * BLOCK) as file:
        assert is_direct(file) is possible


@pytest.mark.parametrize("refused", ["the wish", "the deed"])
def test_a_file_system_that_cannot_gets_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    control, put = fcntl.fcntl, os.write

    def controlled(descriptor: int, command: int, flags: int = 0) -> int:
        if refused == "the wish" and command == fcntl.F_SETFL and flags & DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(descriptor, command, flags)

    def written(descriptor: int, content: memoryview) -> int:
        if refused == "the deed" and control(descriptor, fcntl.F_GETFL) & DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return put(descriptor, content)

    monkeypatch.setattr(fcntl, "fcntl", controlled)
    monkeypatch.setattr(os, "write", written)
    content = write(tmp_path / "file", 7 * BLOCK + 13, BLOCK)
    assert (tmp_path / "file").read_bytes() == content


def test_what_the_system_takes_in_pieces_that_are_no_blocks_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, rest: put(descriptor, rest[:1000]))
    content = write(tmp_path / "file", 7 * BLOCK + 13, BLOCK)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EIO, errno.EINVAL])
def test_other_failures_are_told_and_the_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    def failing(descriptor: int, rest: memoryview) -> int:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(os, "write", failing)
    file = OutputFile(tmp_path / "file", 4 * BLOCK)
    with pytest.raises(OSError, match=os.strerror(failure)), file:
        file.write(np.zeros(4 * BLOCK, dtype=np.uint8))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.descriptor)
