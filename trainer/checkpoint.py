# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: what it is a run of, its checkpoints, and going on from the newest.

    run.json                        what must be the same when the run is resumed
    metrics.jsonl, loss.png         see trainer/metrics.py
    weights                         link to those of the newest checkpoint
    checkpoints/step_000010/        whole as soon as it has this name
        weights/                    as the run's own writer leaves them
        optimizer.pt, state.json
        random_0.pt …               one per process

A checkpoint is written under another name, flushed to the disk, and renamed: a run killed at any moment
leaves only whole ones behind. Sampler and order of the data are functions of the counts in ``state.json``.
"""

from __future__ import annotations

import fcntl
import json
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from model.checkpoint.directory import flush, flush_entry
from model.errors import CheckpointError, ConfigError
from trainer.config import TrainerConfig
from trainer.state import TrainState
from trainer.weights import Weights

RUN_FILE, CHECKPOINTS, WEIGHTS = "run.json", "checkpoints", "weights"
OPTIMIZER_FILE, STATE_FILE, LOCK_FILE = "optimizer.pt", "state.json", ".lock"
ABSENT = "nothing"  # said of a key that one of two identities has not
WHOLE_NAME = re.compile(r"step_(\d{6,})")
UNFINISHED = "unfinished_"  # prefix of a checkpoint being written or being deleted


class Run:
    """The directory of one run, opened by every process before anything expensive happens.

    The run has the directory to itself until ``close``. With ``config.resume`` it goes on where the newest
    checkpoint ends; a run that never got as far as one has left nothing to keep, and is begun anew.

    Args:
        identity: What decides the run's numbers, as JSON values in nested dictionaries: configs, hashes of the
            data and of the base weights. A resumed run must have the same.
        told: What to say of an identity's key beside its value, such as the files that a hash is of.

    Raises:
        ConfigError: There is a run already, and it is not to be resumed; or it is still running.
        CheckpointError: The run there is of another identity; the keys are named. Or its steps take other rows.
    """

    def __init__(
        self,
        config: TrainerConfig,
        identity: Mapping[str, Any],
        *,
        accelerator: Accelerator,
        told: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = config.output
        self.keep = config.keep_checkpoints
        self.accelerator = accelerator
        self.lock: TextIO | None = None
        if accelerator.is_main_process:
            self.claim({"run": json.loads(json.dumps(identity, default=str)), "told": dict(told or {})},
                       resume=config.resume)  # fmt: skip
        accelerator.wait_for_everyone()
        steps = self.steps()
        self.resumed_step = steps[-1] if config.resume and steps else 0
        self.state = TrainState()
        if self.resumed_step:
            self.state = TrainState.read(self.path(self.resumed_step) / STATE_FILE)
            refuse_other_rows(self.state, config, accelerator.num_processes)

    def claim(self, identity: dict[str, Any], *, resume: bool) -> None:
        """Write what this run is, or compare it with what is there; clear away what a killed run left behind."""
        path = self.directory / RUN_FILE
        self.directory.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.directory)
        if self.steps():
            if not path.exists():
                raise CheckpointError(f"'{self.directory}' has checkpoints but no {RUN_FILE}; choose another directory")
            if not resume:
                raise ConfigError(
                    f"trainer.output: '{self.directory}' already holds a run; set trainer.resume=true to go on with it,"
                    " or choose another directory"
                )
            refuse_another(stored=read_identity(path), now=identity, path=path)
        else:
            write_whole(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")
        (self.directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        for remains in (self.directory / CHECKPOINTS).glob(f"{UNFINISHED}*"):
            shutil.rmtree(remains)

    def close(self) -> None:
        """Leave the directory to whoever wants to go on with it."""
        if self.lock is not None:
            self.lock.close()

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
        state.num_processes = self.accelerator.num_processes
        if self.accelerator.is_main_process:
            weights.save(aside / WEIGHTS)
            torch.save(optimizer.state_dict(), aside / OPTIMIZER_FILE)
            state.write(aside / STATE_FILE)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            flush(aside)
            aside.rename(whole)
            flush_entry(whole.parent)
            self.link_weights(whole)
            for step in self.steps()[: -self.keep]:
                discard(self.path(step))
        self.accelerator.wait_for_everyone()
        return whole

    def link_weights(self, whole: Path) -> None:
        """Point ``weights`` in the run's directory to those of a checkpoint."""
        aside = self.directory / f".{WEIGHTS}.new"
        aside.unlink(missing_ok=True)
        aside.symlink_to((whole / WEIGHTS).relative_to(self.directory), target_is_directory=True)
        aside.replace(self.directory / WEIGHTS)

    def load(self, optimizer: Optimizer, weights: Weights) -> TrainState:
        """Put weights, optimizer and random generators back to ``resumed_step``; a new run has nothing to put back.

        Raises:
            CheckpointError: The checkpoint does not fit, or was damaged after it was written.
        """
        if self.resumed_step == 0:
            return self.state
        directory = self.path(self.resumed_step)
        weights.load(directory / WEIGHTS)
        try:
            optimizer.load_state_dict(torch.load(directory / OPTIMIZER_FILE, weights_only=True, map_location="cpu"))
            # There is none for processes that were not part of the run before.
            if self.accelerator.process_index < self.state.num_processes:
                restore_random_state(torch.load(directory / self.random_file, weights_only=True))
        except (OSError, EOFError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{directory}: cannot be resumed from ({error!r}); delete {directory} to go on from an earlier one"
            ) from None
        return self.state

    @property
    def random_file(self) -> str:
        """Where this process keeps its random generators."""
        return f"random_{self.accelerator.process_index}.pt"


def refuse_another(*, stored: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError naming every key in which two identities differ."""
    before, after = dict(flatten(stored.get("run", {}))), dict(flatten(now["run"]))
    differing = [
        f"  {key}: was {in_words(key, before, stored)}, now {in_words(key, after, now)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]
    if differing:
        raise CheckpointError(
            "\n".join(
                [f"{path}: this is another run; undo these changes, or choose another trainer.output", *differing]
            )
        )


def in_words(key: str, values: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """A value of an identity, and what is told of it."""
    told = identity.get("told", {}).get(key)
    return f"{values.get(key, ABSENT)!r}" + (f" ({told})" if told else "")


def refuse_other_rows(state: TrainState, config: TrainerConfig, num_processes: int) -> None:
    """Raise CheckpointError if a step would not take as many rows as each step of the run before did."""
    before, at_once = state.position // state.step, num_processes * config.batch_size
    if at_once * config.gradient_accumulation == before:
        return
    remedy = (
        f"set trainer.gradient_accumulation={before // at_once}"
        if before % at_once == 0
        else f"no trainer.gradient_accumulation gives {before} with {num_processes} processes, take another number of"
        f" them (there were {state.num_processes})"
    )
    raise CheckpointError(
        f"'{config.output}': a step of this run takes {before} rows, now it would take"
        f" {at_once * config.gradient_accumulation} ({num_processes} processes × batch_size {config.batch_size} ×"
        f" gradient_accumulation {config.gradient_accumulation}); {remedy}"
    )


def lock(directory: Path) -> TextIO:
    """Keep other runs out of ``directory`` for as long as the file that is returned stays open.

    The lock is the process's: it goes with it, however it ends. Where a file system has none, there is none.
    """
    file = (directory / LOCK_FILE).open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"trainer.output: a run is going on in '{directory}'; choose another directory") from None
    except OSError:
        pass
    return file


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
