# SPDX-License-Identifier: Apache-2.0
"""Directories that are either whole or not there: written aside, flushed to disk, renamed at the end."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import CheckpointError


@contextmanager
def whole_directory(target: Path, *, overwrite: bool = False, marker: str) -> Iterator[Path]:
    """A fresh directory to write into, which becomes ``target`` only if nothing fails.

    Args:
        target: A directory that does not exist, is empty, or (with ``overwrite``) holds ``marker``.
        overwrite: Whether a directory of the same kind may be replaced; it stays until the new one is whole.
        marker: The file that tells a directory of this kind from one that must not be deleted.

    Raises:
        CheckpointError: ``target`` is something that must not be replaced.
    """
    target = Path(os.path.realpath(target))  # what a link points to is replaced, not the link
    check_target(target, overwrite=overwrite, marker=marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    aside.mkdir()
    replaced = aside.with_suffix(".replaced")
    try:
        yield aside
        flush(aside)
        if target.exists() and any(target.iterdir()):
            target.rename(replaced)
        aside.rename(target)
    except BaseException:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush_entry(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def check_target(target: Path, *, overwrite: bool, marker: str) -> None:
    """Raise CheckpointError unless ``target`` may be written; for callers whose work before writing is long."""
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: is a file; give a directory to write")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{target}: already there and not empty; choose another directory, or allow overwriting")
    if not (target / marker).is_file():
        raise CheckpointError(
            f"{target}: holds other things than what would be written (no {marker}), so it is not overwritten;"
            " choose another directory"
        )


def flush(directory: Path) -> None:
    """Wait until every file below ``directory``, and every entry, is on disk."""
    for path in (*directory.rglob("*"), directory):
        flush_entry(path)


def flush_entry(path: Path) -> None:
    """Wait until this file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
