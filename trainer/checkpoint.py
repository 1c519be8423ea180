# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: what it is a run of, its checkpoints, and going on from the newest.

    run.json                        what must be the same when the run is resumed
    metrics.jsonl, loss.png         see trainer/metrics.py
    checkpoints/step_000010/        whole as soon as it has this name
        weights/                    as the run's own writer leaves them
        optimizer.pt, state.json
        random_0.pt …               one per process

A checkpoint is written under another name, flushed to the disk, and renamed: a run killed at any moment
leaves only whole ones behind. Sampler and order of the data are functions of the counts in ``state.json``.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from model.checkpoint.directory import flush, flush_entry
from model.errors import CheckpointError, ConfigError
from trainer.state import TrainState
from trainer.weights import Weights

RUN_FILE, CHECKPOINTS, WEIGHTS = "run.json", "checkpoints", "weights"
OPTIMIZER_FILE, STATE_FILE = "optimizer.pt", "state.json"
WHOLE_NAME = re.compile(r"step_(\d{6,})")
UNFINISHED = "unfinished_"  # prefix of a checkpoint being written or being deleted


class Run:
    """The directory of one run, opened by every process before anything expensive happens.

    Args:
        identity: What decides the run's numbers, as JSON values in nested dictionaries: configs, hashes of the
            data and of the base weights. A resumed run must have the same.
        keep: How many checkpoints stay.
        resume: Go on where the newest checkpoint in ``directory`` ends, or begin if there is none.

    Raises:
        ConfigError: There is a run already, and ``resume`` is not asked for.
        CheckpointError: The run there is of another identity; the keys are named.
    """

    def __init__(
        self, directory: Path, identity: Mapping[str, Any], *, keep: int, resume: bool, accelerator: Accelerator
    ) -> None:
        self.directory = directory
        self.keep = keep
        self.accelerator = accelerator
        if accelerator.is_main_process:
            self.claim(json.loads(json.dumps(identity, default=str)), resume=resume)
        accelerator.wait_for_everyone()
        steps = self.steps()
        self.resumed_step = steps[-1] if resume and steps else 0

    def claim(self, identity: dict[str, Any], *, resume: bool) -> None:
        """Write what this run is, or compare it with what is there; clear away what a killed run left behind."""
        path = self.directory / RUN_FILE
        if path.exists():
            if not resume:
                raise ConfigError(
                    f"trainer.output: '{self.directory}' already holds a run; set trainer.resume=true to go on with it,"
                    " or choose another directory"
                )
            refuse_another(stored=read_identity(path), now=identity, path=path)
        elif self.steps():
            raise CheckpointError(f"'{self.directory}' has checkpoints but no {RUN_FILE}; choose another directory")
        (self.directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        for remains in (self.directory / CHECKPOINTS).glob(f"{UNFINISHED}*"):
            shutil.rmtree(remains)
        if not path.exists():
            write_whole(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, ascending."""
        found = (WHOLE_NAME.fullmatch(path.name) for path in (self.directory / CHECKPOINTS).glob("step_*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or would be."""
        return self.directory / CHECKPOINTS / f"step_{step:06d}"

    def save(self, state: TrainState, optimizer: Optimizer, weights: Weights) -> Path:
        """Write a checkpoint; called by every process, after the same step."""
        whole = self.path(state.step)
        aside = whole.with_name(UNFINISHED + whole.name)
        if self.accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            (aside / WEIGHTS).mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        torch.save(random_state(), aside / self.random_file)
        if self.accelerator.is_main_process:
            weights.save(aside / WEIGHTS)
            torch.save(optimizer.state_dict(), aside / OPTIMIZER_FILE)
            state.write(aside / STATE_FILE)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            flush(aside)
            aside.rename(whole)
            flush_entry(whole.parent)
            for step in self.steps()[: -self.keep]:
                discard(self.path(step))
        self.accelerator.wait_for_everyone()
        return whole

    def load(self, optimizer: Optimizer, weights: Weights) -> TrainState:
        """Put weights, optimizer and random generators back to ``resumed_step``; a new run has nothing to put back.

        Raises:
            CheckpointError: The checkpoint does not fit, or was damaged after it was written.
        """
        if self.resumed_step == 0:
            return TrainState()
        directory = self.path(self.resumed_step)
        state = TrainState.read(directory / STATE_FILE)
        weights.load(directory / WEIGHTS)
        try:
            optimizer.load_state_dict(torch.load(directory / OPTIMIZER_FILE, weights_only=True, map_location="cpu"))
            own = directory / self.random_file
            if own.exists():  # there is none for processes that were not part of the run before
                restore_random_state(torch.load(own, weights_only=True))
        except (OSError, EOFError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{directory}: cannot be resumed from ({error}); delete it to use an earlier one"
            ) from None
        return state

    @property
    def random_file(self) -> str:
        """Where this process keeps its random generators."""
        return f"random_{self.accelerator.process_index}.pt"


def refuse_another(*, stored: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError naming every key in which two identities differ."""
    before, after = dict(flatten(stored)), dict(flatten(now))
    absent = "nothing"
    differing = [
        f"  {key}: was {before.get(key, absent)!r}, now {after.get(key, absent)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, absent) != after.get(key, absent)
    ]
    if differing:
        raise CheckpointError(
            "\n".join(
                [f"{path}: this is another run; undo these changes, or choose another trainer.output", *differing]
            )
        )


def flatten(nested: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries under dotted keys; a list is a leaf."""
    if not isinstance(nested, dict) or not nested:
        yield prefix, nested
        return
    for key, value in nested.items():
        yield from flatten(value, f"{prefix}.{key}" if prefix else key)


def read_identity(path: Path) -> dict[str, Any]:
    """What the run in a directory is, or CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); choose another trainer.output") from None


def random_state() -> dict[str, Any]:
    """Where torch's generators are; nothing else in training draws from a generator that lasts."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def restore_random_state(state: dict[str, Any]) -> None:
    """Put torch's generators back."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def discard(whole: Path) -> None:
    """Delete a checkpoint; under another name first, so that half of it never looks like all of it."""
    aside = whole.with_name(f"{UNFINISHED}old_{whole.name}")
    whole.rename(aside)
    shutil.rmtree(aside)


def write_whole(path: Path, content: str) -> None:
    """Write a text file that is either there or not."""
    aside = path.with_name(UNFINISHED + path.name)
    aside.write_text(content, encoding="utf-8")
    flush_entry(aside)
    aside.rename(path)
    flush_entry(path.parent)
