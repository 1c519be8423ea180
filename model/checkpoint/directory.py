# SPDX-License-Identifier: Apache-2.0
"""Directories that are either whole or not there: written aside, flushed to disk, renamed at the end.

A process that is killed leaves what it had written beside the target, under a name that begins with a dot and ends
with ``.partial``. It is locked for as long as its process lives; the next one that writes the same target removes
those that nobody holds.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from model.errors import CheckpointError

UNFINISHED = ".partial"
# What may lie in a directory of each kind, by the file that marks the kind: nothing else is lost by replacing it.
KNOWN = {
    "config.json": (
        "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
        "video_preprocessor_config.json", "README.md", "slice.json", "adapter",
    ),
    "adapter_config.json": ("adapter_config.json", "adapter_model.safetensors", "README.md", "slice.json"),
    "run.json": (
        "run.json", ".lock", "config.yaml", "metrics.jsonl", "loss.png", "wandb", "wandb_id", "checkpoints", "weights",
        "base", "best", "divergence.json",
    ),
}  # fmt: skip
WITHIN = {"adapter": "adapter_config.json", "base": "config.json"}  # directories that are of a kind themselves
IN_WORKING_DIRECTORY, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextmanager
def whole_directory(target: Path, *, overwrite: bool = False, marker: str) -> Iterator[Path]:
    """A fresh directory to write into, which becomes ``target`` only if nothing fails.

    Args:
        target: A directory that does not exist, is empty, or (with ``overwrite``) holds ``marker`` and nothing
            that is not of its kind.
        overwrite: Whether a directory of the same kind may be replaced; it stays until the new one is whole.
        marker: The file that tells a directory of this kind from one that must not be deleted.

    Raises:
        CheckpointError: ``target`` is something that must not be replaced.
    """
    target = Path(os.path.realpath(target))  # what a link points to is replaced, not the link
    check_target(target, overwrite=overwrite, marker=marker)
    made = [place for place in target.parents if not place.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target, marker=marker)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    lock: int | None = None
    try:
        lock = begin(aside)
        yield aside
        flush(aside)
        check_target(target, overwrite=overwrite, marker=marker)  # another process may have been faster
        put_in_place(aside, target)
        flush_entry(target.parent)
    finally:
        remove(aside, marker=marker)  # what failed, or what was replaced; nothing is there otherwise
        if lock is not None:
            os.close(lock)
        with suppress(OSError):
            for place in made:  # those that hold something stay
                place.rmdir()


def check_target(target: Path, *, overwrite: bool, marker: str) -> None:
    """Raise CheckpointError unless ``target`` may be written; for callers whose work before writing is long."""
    if loops(target):
        raise CheckpointError(f"{target}: is a link that leads back to itself; choose another directory")
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
    if (found := foreign_entry(target, marker)) is not None:
        raise CheckpointError(
            f"{target}: holds '{found.relative_to(target)}', which would be lost, so it is not overwritten; move it"
            " elsewhere, or choose another directory"
        )


def foreign_entry(directory: Path, marker: str) -> Path | None:
    """The first thing in a directory that does not belong to those of its kind, which ``marker`` tells."""
    for path in sorted(directory.iterdir()):
        if not any(fnmatchcase(path.name, pattern) for pattern in KNOWN[marker]):
            return path
        if path.name in WITHIN and path.is_dir() and (found := foreign_entry(path, WITHIN[path.name])) is not None:
            return found
    return None


def loops(path: Path) -> bool:
    """Whether links on the way to this place lead in a circle."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def check_room(target: Path, needed_bytes: int, *, marker: str) -> None:
    """Raise CheckpointError if the disk that ``target`` is to be on has less room; to be asked before it is begun.

    Room that killed processes took for the same target is made free first, if it is needed.
    """
    place = next(place for place in target.absolute().parents if place.is_dir())
    if needed_bytes > shutil.disk_usage(place).free:
        remove_unfinished(target, marker=marker)
    free_bytes = shutil.disk_usage(place).free
    if needed_bytes > free_bytes:
        raise CheckpointError(
            f"{place}: {needed_bytes / 1e9:.2f} GB are to be written, but the disk has"
            f" {free_bytes / 1e9:.2f} GB left; make room, or choose another place"
        )


def begin(aside: Path) -> int:
    """Make a directory, and give the descriptor that keeps it locked."""
    while True:
        aside.mkdir(exist_ok=True)
        # Until it is locked, another process may take it for one that was left behind, and remove it.
        with suppress(FileNotFoundError):
            lock = os.open(aside, os.O_RDONLY)
            if try_lock(lock) is not False and aside.is_dir():
                return lock
            os.close(lock)


def remove_unfinished(target: Path, *, marker: str) -> None:
    """Remove what processes that are gone had written of ``target``; where there are no locks, it is left."""
    target = Path(os.path.realpath(target))
    for left in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}{UNFINISHED}"):
        with suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            if try_lock(lock):
                remove(left, marker=marker)
            os.close(lock)


def try_lock(descriptor: int) -> bool | None:
    """Lock a directory; False if another process holds it, None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove(directory: Path, *, marker: str) -> None:
    """Remove a directory, at first what makes it look whole."""
    with suppress(OSError):
        (directory / marker).unlink()
    shutil.rmtree(directory, ignore_errors=True)


def put_in_place(aside: Path, target: Path) -> None:
    """Rename ``aside`` to ``target``; what was at ``target`` is at ``aside`` then."""
    if not target.exists() or not any(target.iterdir()):
        aside.rename(target)
    elif not exchange(aside, target):
        # For a moment there is nothing at the target: a process killed just then leaves the old one beside it.
        replaced = aside.with_suffix(".replaced")
        target.rename(replaced)
        try:
            aside.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
        replaced.rename(aside)


def exchange(one: Path, other: Path) -> bool:
    """Let two directories change places at one stroke; False where system or file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and not rename(
        IN_WORKING_DIRECTORY, os.fsencode(one), IN_WORKING_DIRECTORY, os.fsencode(other), EXCHANGE
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
