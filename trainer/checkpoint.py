# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: what it is a run of, its checkpoints, and going on from the newest.

    run.json                        what must be the same when the run is resumed, and what a fork came from
    metrics.jsonl, loss.png         see trainer/metrics.py
    divergence.json                 see trainer/divergence.py
    state.json                      the newest checkpoint's, if what a signal left no time for was measured since
    weights, best                   see trainer/retention.py
    checkpoints/step_000010/        whole as soon as it has this name
        manifest.json               size and SHA-256 of each of the others
        weights/, optimizer.pt …    see trainer/trained.py
        state.json
        random_0.pt …               one per process

A checkpoint is written under another name, flushed to the disk, and renamed: a run killed at any moment
leaves only whole ones behind. One that a disk damaged later is told by its manifest, and the newest whole one is
taken. Sampler and order of the data are functions of the counts in ``state.json``.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from model.checkpoint.directory import flush, flush_entry
from model.errors import CheckpointError, ConfigError
from trainer.config import TrainerConfig
from trainer.divergence import DIVERGENCE_FILE
from trainer.identity import (
    as_stored,
    changes_of,
    read_identity,
    refuse_another,
    refuse_other_rows,
    surroundings_of,
)  # fmt: skip
from trainer.locking import lock
from trainer.manifest import damage_of, write_manifest
from trainer.retention import (
    BEST,
    CHECKPOINTS,
    UNFINISHED,
    checkpoint_at,
    link_both,
    linked_step,
    set_aside,
    steps_of,
    thin_out,
)  # fmt: skip
from trainer.state import TrainState
from trainer.trained import WEIGHTS, Trained, read_tensors, write_tensors

RUN_FILE, STATE_FILE = "run.json", "state.json"
NOT_WRITTEN = (OSError, SafetensorError)  # a full disk, a directory that is gone
MEASURED = ("evaluated_at", "best_loss", "best_step", "loss_to_beat", "evaluations_without_gain")  # of TrainState
NOT_READ = (OSError, EOFError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError)


class Run:
    """The directory of one run, opened by every process before anything expensive happens.

    The run has the directory to itself until ``close``. With ``config.resume`` it goes on where the newest
    whole checkpoint ends; a run that never got as far as one has left nothing to keep, and is begun anew.

    Args:
        identity: What decides the run's numbers, as JSON values in nested dictionaries: configs, hashes of the
            data and of the base weights. A resumed run must have the same.
        told: What to say of an identity's key beside its value, such as the files that a hash is of.
        lineage: Of a run that starts from another's weights: whose, and after which step.

    Raises:
        ConfigError: There is a run already, and it is not to be resumed; or it is still running.
        CheckpointError: The run there is of another identity; the keys are named. Or its steps take other rows, or
            none of its checkpoints is what was written.
    """

    def __init__(
        self,
        config: TrainerConfig,
        identity: Mapping[str, Any],
        *,
        accelerator: Accelerator,
        told: Mapping[str, str] | None = None,
        lineage: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = config.output
        self.keep = config.keep_checkpoints
        self.keep_best = config.keep_best
        self.accelerator = accelerator
        self.lock: TextIO | None = None
        found: int | None = None
        if accelerator.is_main_process:
            now = as_stored(identity, told, lineage, surroundings_of(config, accelerator))
            found = self.claim(now, resume=config.resume)
        # The step of the checkpoint to go on from; None for a run that begins.
        self.found: int | None = self.of_first_process(found)
        self.state = TrainState()
        if self.found is not None:
            self.state = self.state_at(self.found)
            refuse_other_rows(self.state, config, accelerator.num_processes)
            if accelerator.is_main_process:
                self.go_on(surroundings_of(config, accelerator))

    @property
    def resumed_step(self) -> int:
        """The step that the run goes on from, 0 if it begins."""
        return self.found or 0

    def claim(self, identity: dict[str, Any], *, resume: bool) -> int | None:
        """Write what this run is, or compare it with what is there; clear away what a killed run left behind.

        Returns:
            The step of the newest whole checkpoint, if there is any.
        """
        path, found = self.directory / RUN_FILE, None
        self.directory.mkdir(parents=True, exist_ok=True)
        self.lock = lock(
            self.directory,
            f"trainer.output: a run is going on in '{self.directory}'; choose another directory",
        )
        if self.steps():
            if not path.exists():
                raise CheckpointError(f"'{self.directory}' has checkpoints but no {RUN_FILE}; choose another directory")
            if not resume:
                raise ConfigError(
                    f"trainer.output: '{self.directory}' already holds a run; go on with it by"
                    f" 'matslice train resume={self.directory}' (or trainer.resume=true beside all that it was begun"
                    " with), or choose another directory"
                )
            refuse_another(stored=read_identity(path), now=identity, path=path)
            found = self.newest_whole()
        elif resume and path.exists() and "lineage" in read_identity(path):
            raise CheckpointError(
                f"'{self.directory}': this fork was stopped before it had the weights it starts from; fork again, into"
                " another trainer.output"
            )
        else:
            write_identity(path, identity)
            (self.directory / STATE_FILE).unlink(missing_ok=True)
        (self.directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        for remains in (self.directory / CHECKPOINTS).glob(f"{UNFINISHED}*"):
            shutil.rmtree(remains)
        (self.directory / DIVERGENCE_FILE).unlink(missing_ok=True)
        return found

    def newest_whole(self) -> int:
        """The step of the newest checkpoint that is what was written; newer ones are set aside, and that is said."""
        whole, damaged = newest_whole(self.directory)
        for step, damage in damaged.items():
            print(
                f"warning: {self.path(step)} is damaged ({damage}); going on from step {whole}, and calling it"
                f" damaged_{self.path(step).name}", file=sys.stderr,
            )  # fmt: skip
        set_aside(self.directory, list(damaged))
        return whole

    def go_on(self, surroundings: dict[str, Any]) -> None:
        """Point the links to where the run goes on from; say what is not as it was."""
        self.link(self.state, newest=self.resumed_step)
        path, best = self.directory / RUN_FILE, self.state.best_step
        if self.keep_best and self.state.best_loss is not None and linked_step(self.directory, BEST) != best:
            print(
                f"warning: the lowest validation loss so far is of step {best}, whose checkpoint is not there any more;"
                f" '{BEST}' will be the first that is lower", file=sys.stderr,
            )  # fmt: skip
        stored = read_identity(path)
        if changed := changes_of(stored.get("surroundings", surroundings), surroundings):
            print(f"'{self.directory}' continues, but no longer bitwise: {', '.join(changed)}", file=sys.stderr)
        if stored.get("surroundings") != surroundings:
            write_identity(path, stored | {"surroundings": surroundings})

    def link(self, state: TrainState, *, newest: int) -> None:
        """Point the links to the newest checkpoint and, if it is to be kept, to the best."""
        has_best = self.keep_best and state.best_loss is not None
        link_both(self.directory, newest=newest, best=state.best_step if has_best else None)

    def state_at(self, step: int) -> TrainState:
        """The state of a checkpoint, with what was measured after it was written."""
        state, note = TrainState.read(self.path(step) / STATE_FILE), self.directory / STATE_FILE
        try:
            noted = TrainState.read(note) if note.exists() else state
        except CheckpointError:  # it is measured again
            return state
        if noted.step != step or noted.evaluated_at != step:
            return state
        return dataclasses.replace(state, **{name: getattr(noted, name) for name in MEASURED})

    def note(self, state: TrainState) -> None:
        """Keep what was measured after the checkpoint of this step was written; called by every process."""
        if self.accelerator.is_main_process:
            write_whole(self.directory / STATE_FILE, json.dumps(dataclasses.asdict(state), indent=2) + "\n")
            self.link(state, newest=state.step)
        self.accelerator.wait_for_everyone()

    def of_first_process(self, value: int | None) -> int | None:
        """What the first process has."""
        if self.accelerator.num_processes == 1:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]

    def close(self) -> None:
        """Leave the directory to whoever wants to go on with it."""
        if self.lock is not None:
            self.lock.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return steps_of(self.directory)

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or would be."""
        return checkpoint_at(self.directory, step)

    def save(self, state: TrainState, trained: Trained) -> Path:
        """Write a checkpoint; called by every process, after the same step.

        Raises:
            CheckpointError: The disk is full, or fails otherwise. Earlier checkpoints are as they were, and of this
                one nothing is left.
        """
        whole = self.path(state.step)
        aside = whole.with_name(UNFINISHED + whole.name)
        state.num_processes = self.accelerator.num_processes
        try:
            self.together(lambda: begin(aside), state, first_only=True)
            self.together(lambda: self.write(aside, state, trained), state)
            self.together(lambda: finish(aside, whole), state, first_only=True)
        except BaseException:
            if self.accelerator.is_main_process:
                shutil.rmtree(aside, ignore_errors=True)
            raise
        self.together(lambda: self.tidy(state), state, first_only=True)
        return whole

    def tidy(self, state: TrainState) -> None:
        """What follows a checkpoint that is whole: links, and fewer of the older ones."""
        self.link(state, newest=state.step)
        (self.directory / STATE_FILE).unlink(missing_ok=True)
        thin_out(self.directory, keep=self.keep)

    def write(self, aside: Path, state: TrainState, trained: Trained) -> None:
        """This process's part of a checkpoint."""
        # First what processes do together: one that cannot write its own must not keep the others waiting.
        trained.save(aside, written=self.accelerator.is_main_process)
        write_tensors(random_state(), aside / self.random_file)
        if self.accelerator.is_main_process:
            state.write(aside / STATE_FILE)

    def together(self, work: Callable[[], None], state: TrainState, *, first_only: bool = False) -> None:
        """Do something in every process, or in the first; if it fails in one, it has failed in all."""
        failure: Exception | None = None
        if self.accelerator.is_main_process or not first_only:
            try:
                work()
            except NOT_WRITTEN as error:
                failure = error
        if self.num_failed(failed=failure is not None):
            free = shutil.disk_usage(self.directory).free
            there = self.steps()
            is_written = state.step in there
            what = "is written, but links to it or older ones are not" if is_written else "could not be written"
            left = f"that of step {there[-1]} is {'whole' if is_written else 'as it was'}" if there else (
                "there is no earlier one"
            )  # fmt: skip
            raise CheckpointError(
                f"{self.path(state.step)}: the checkpoint {what} ({failure or 'another process says why'};"
                f" {free / 1e9:.2f} GB are free there); {left}. Make room, and go on with"
                f" 'matslice train resume={self.directory}'"
            ) from failure

    def num_failed(self, *, failed: bool) -> int:
        """In how many processes something failed; every process waits for the others here."""
        if self.accelerator.num_processes == 1:
            return int(failed)
        count = self.accelerator.reduce(torch.tensor(int(failed), device=self.accelerator.device), reduction="sum")
        assert isinstance(count, torch.Tensor)
        return int(count.item())

    def load(self, trained: Trained) -> TrainState:
        """Put everything back to where the run goes on from; one that begins has nothing to put back.

        Raises:
            CheckpointError: The checkpoint does not fit.
        """
        if self.found is None:
            return self.state
        directory = self.path(self.found)
        try:
            trained.load(directory)
            # There is none for processes that were not part of the run before.
            if self.accelerator.process_index < self.state.num_processes:
                restore_random_state(read_tensors(directory / self.random_file))
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from None
        except NOT_READ as error:
            raise CheckpointError(
                f"{directory}: cannot be resumed from ({error!r}); delete {directory} to go on from an earlier one"
            ) from None
        return self.state

    @property
    def random_file(self) -> str:
        """Where this process keeps its random generators."""
        return f"random_{self.accelerator.process_index}.pt"


def newest_whole(directory: Path) -> tuple[int, dict[int, str]]:
    """The step of a run's newest checkpoint that is what was written, and what is wrong with the newer ones.

    Raises:
        CheckpointError: There is none, or none is whole.
    """
    damaged: dict[int, str] = {}
    for step in reversed(steps_of(directory)):
        if (damage := damage_of(checkpoint_at(directory, step))) is None:
            return step, damaged
        damaged[step] = damage
    if not damaged:
        raise CheckpointError(f"'{directory}': no checkpoint yet, so there is nothing to start from")
    told = "\n".join(f"  {checkpoint_at(directory, step)}: {damage}" for step, damage in damaged.items())
    raise CheckpointError(
        f"'{directory}': no checkpoint is what was written; put copies of them back, or begin anew with another"
        f" trainer.output\n{told}"
    )


def begin(aside: Path) -> None:
    """Make the directory that a checkpoint is written into."""
    shutil.rmtree(aside, ignore_errors=True)
    (aside / WEIGHTS).mkdir(parents=True)


def finish(aside: Path, whole: Path) -> None:
    """Make what is written a checkpoint."""
    write_manifest(aside)
    flush(aside)
    aside.rename(whole)
    flush_entry(whole.parent)


def random_state() -> dict[str, Any]:
    """Where torch's generators are; nothing else in training draws from a generator that lasts."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def restore_random_state(state: dict[str, Any]) -> None:
    """Put torch's generators back."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def write_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Write ``run.json``."""
    write_whole(path, json.dumps(identity, indent=2, sort_keys=True) + "\n")


def write_whole(path: Path, content: str) -> None:
    """Write a text file that is either there or not."""
    aside = path.with_name(UNFINISHED + path.name)
    aside.write_text(content, encoding="utf-8")
    flush_entry(aside)
    aside.rename(path)
    flush_entry(path.parent)
