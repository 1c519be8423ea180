# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints of a run stay, and the links to the newest and to the best.

weights    link to the weights of the newest checkpoint
best       link to those of the lowest validation loss, with trainer.keep_best; its checkpoint is never deleted
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from trainer.trained import WEIGHTS

CHECKPOINTS, BEST = "checkpoints", "best"
WHOLE_NAME = re.compile(r"step_(\d{6,})")
UNFINISHED = "unfinished_"  # prefix of a checkpoint being written or being deleted
DAMAGED = "damaged_"  # prefix of one that is not what was written; it is never read again, nor deleted


def steps_of(directory: Path) -> list[int]:
    """The steps that a run has a checkpoint of, ascending."""
    found = (WHOLE_NAME.fullmatch(path.name) for path in (directory / CHECKPOINTS).glob("step_*"))
    return sorted(int(match[1]) for match in found if match)


def checkpoint_at(directory: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is, or would be."""
    return directory / CHECKPOINTS / f"step_{step:06d}"


def link(directory: Path, name: str, step: int) -> None:
    """Let ``name`` in the run's directory be the weights of a checkpoint; it never points to nothing in between."""
    aside = directory / f".{name}.new"
    aside.unlink(missing_ok=True)
    aside.symlink_to(Path(CHECKPOINTS, checkpoint_at(directory, step).name, WEIGHTS), target_is_directory=True)
    if (directory / name).is_dir() and not (directory / name).is_symlink():
        shutil.rmtree(directory / name)  # what copying a run made of the link
    aside.replace(directory / name)


def unlink(directory: Path, name: str) -> None:
    """Let there be nothing of that name, be it a link or what copying a run made of one."""
    if (directory / name).is_dir() and not (directory / name).is_symlink():
        shutil.rmtree(directory / name)
    else:
        (directory / name).unlink(missing_ok=True)


def link_both(directory: Path, *, newest: int, best: int | None) -> None:
    """Point the links to the newest checkpoint and to the best; to no best if its checkpoint is not there."""
    link(directory, WEIGHTS, newest)
    if best is not None and checkpoint_at(directory, best).is_dir():
        link(directory, BEST, best)
    else:
        unlink(directory, BEST)


def linked_step(directory: Path, name: str) -> int | None:
    """The step of the checkpoint that a link points into."""
    try:
        target = Path(os.readlink(directory / name))
    except OSError:
        return None
    found = WHOLE_NAME.fullmatch(target.parent.name)
    return int(found[1]) if found else None


def thin_out(directory: Path, *, keep: int) -> None:
    """Delete all but the newest checkpoints, and the one that ``best`` points to."""
    best = linked_step(directory, BEST)
    for step in steps_of(directory)[:-keep]:
        if step != best:
            discard(checkpoint_at(directory, step))


def discard(whole: Path) -> None:
    """Delete a checkpoint; under another name first, so that half of it never looks like all of it."""
    aside = whole.with_name(f"{UNFINISHED}old_{whole.name}")
    whole.rename(aside)
    shutil.rmtree(aside)


def set_aside(directory: Path, steps: Sequence[int]) -> None:
    """Rename damaged checkpoints, so that the steps can be written again; older ones of that name give way."""
    for step in steps:
        whole = checkpoint_at(directory, step)
        aside = whole.with_name(DAMAGED + whole.name)
        shutil.rmtree(aside, ignore_errors=True)
        whole.rename(aside)
