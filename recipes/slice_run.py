# SPDX-License-Identifier: Apache-2.0
"""Slice a run as it stands, so that it goes on as a run of the smaller model; its steps and rows are counted on.

    run.json                        the run's identity, with the model, base and specs of the smaller one
    metrics.jsonl                   the parent's so far
    weights, checkpoints/step_…/    the newest checkpoint: weights or adapter, optimizer, counts, random generators
    base/                           the part of what the run began from, to be given as checkpoint=

Which of its sizes a run goes on with that trains several, says ``recipes/run_identity.py``.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.directory import check_target, whole_directory
from model.checkpoint.reader import Checkpoint
from model.config import ModelConfig, TextConfig
from model.errors import CheckpointError, ConfigError, SliceError
from model.slicing.adapter import slice_adapter
from model.slicing.checkpoint import refuse_within, slice_checkpoint
from model.slicing.config import slice_config
from model.slicing.optimizer import IN_MEMORY, place_parameter, slice_optimizer
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from recipes.run_identity import READ_HERE, Identity, shape_of, sliced_identity, trained_shapes, words_to_go_on
from recipes.slice_check import check as slice_check
from trainer.checkpoint import RUN_FILE, STATE_FILE, newest_whole
from trainer.identity import flatten, read_identity
from trainer.locking import LOCK_FILE
from trainer.manifest import write_manifest
from trainer.retention import CHECKPOINTS, checkpoint_at, steps_of
from trainer.sinks import METRICS_FILE, read_records
from trainer.state import TrainState
from trainer.trained import OPTIMIZER_FILE, WEIGHTS

BASE = "base"  # where the part of what the run began from goes, inside the sliced run
Write = Callable[[Checkpoint, Path, SubModel], None]


@dataclass(frozen=True)
class StoredRun:
    """A run that is to be sliced: what it is, and where its newest checkpoint lies."""

    directory: Path
    newest: Path
    identity: Identity
    told: dict[str, Any]

    @property
    def has_adapter(self) -> bool:
        """Whether it trains an adapter, and not weights."""
        return self.identity["adapter"] is not None


@dataclass(frozen=True)
class Cut:
    """A part of a run, all that can be refused behind it; on disk there is nothing yet.

    ``sub`` is the part of ``source``, ``within`` that of what the run has of it.
    """

    stored: StoredRun
    source: Checkpoint
    sub: SubModel
    within: SubModel
    identity: Identity  # but for the base
    optimizer: dict[str, Any]

    def write(self, directory: Path, write: Write) -> Identity:
        """Write the sliced run into an empty directory; give what it is."""
        newest = self.newest(directory)
        newest.mkdir(parents=True)
        if self.stored.has_adapter:
            slice_adapter(self.stored.newest / WEIGHTS, newest / WEIGHTS, self.sub, self.source.config)
        else:
            write(Checkpoint.open(self.stored.newest / WEIGHTS), newest / WEIGHTS, self.within)
        torch.save(self.optimizer, newest / OPTIMIZER_FILE)
        for counted in (STATE_FILE, *(path.name for path in self.stored.newest.glob("random_*.pt"))):
            shutil.copyfile(self.stored.newest / counted, newest / counted)
        write_manifest(newest)
        write(self.source, directory / BASE, self.sub)
        identity = {**self.identity, "base": Checkpoint.open(directory / BASE).fingerprint()}
        written = json.dumps({"run": identity, "told": self.stored.told}, indent=2, sort_keys=True)
        (directory / RUN_FILE).write_text(f"{written}\n", encoding="utf-8")
        if (self.stored.directory / METRICS_FILE).is_file():
            shutil.copyfile(self.stored.directory / METRICS_FILE, directory / METRICS_FILE)
        (directory / WEIGHTS).symlink_to(Path(CHECKPOINTS, newest.name, WEIGHTS), target_is_directory=True)
        return identity

    def newest(self, directory: Path) -> Path:
        """Where a sliced run has its newest checkpoint."""
        return directory / CHECKPOINTS / self.stored.newest.name

    def compare(self, directory: Path, output: Path) -> None:
        """Raise CheckpointError unless the sub-model says what its parent says under the same spec."""
        before, now = self.stored.newest / WEIGHTS, self.newest(directory) / WEIGHTS
        if self.stored.has_adapter:
            slice_check(self.source, self.sub, directory / BASE, adapter=before, cut_adapter=now, output=output)
        else:
            slice_check(Checkpoint.open(before), self.within, now, adapter=None, cut_adapter=None, output=output)


def slice_run(
    run: Path,
    source: Checkpoint,
    sub: SubModel,
    output: Path,
    *,
    write: Write = slice_checkpoint,
    overwrite: bool = False,
    check: bool = False,
) -> list[str]:
    """Write the part ``sub`` of a run as a run of its own, and tell what goes on with it.

    Its base is in ``output/base``. Needs memory for the optimizer's state of the sub-model. Nobody can train in
    ``run`` meanwhile.

    Returns:
        What to say differently to ``matslice train`` than it was said to train ``run``.

    Args:
        run: The directory of a run that was stopped.
        source: What the run began from; for one that trains weights, these may be given instead (``run/weights``),
            and must be if it began from none.
        sub: The part of ``source``.
        output: A directory that does not exist or is empty.
        write: How a checkpoint is sliced.
        overwrite: Whether another run at ``output`` may be replaced.
        check: Whether to compare parent and sub-model on the same tokens.

    Raises:
        CheckpointError: There is no such run, it has no checkpoint or a damaged one, began from something else, or
            ``output`` is in use.
        ConfigError: It is still running, or at its end.
        SliceError: The sub-model does not fit, drops tokens or what the run's rows need, or has nothing to train.
    """
    refuse_within(run, output)
    refuse_within(source.path, output)
    check_target(output, overwrite=overwrite, marker=RUN_FILE)
    if sub.vocabulary is not None and len(sub.vocabulary) < sub.vocabulary.parent_size:
        raise SliceError(
            f"slice '{sub.name}': drops tokens, but the rows of a run are known by the numbers of its tokens; leave"
            " vocabulary out, and trim the trained model when the run is done"
        )
    sub = dataclasses.replace(sub, vocabulary=None)
    with held(run), held(output):
        cut = cut_of(read_run(run), source, sub)
        with whole_directory(output, overwrite=overwrite, marker=RUN_FILE) as directory:
            identity = cut.write(directory, write)
            if check:
                cut.compare(directory, output)
    return words_to_go_on(output, output / BASE, cut.stored.identity, identity)


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep trainers out of a run for as long as it is read; raise ConfigError if one is in it.

    Other readers may be: the lock is a shared one. A directory without a lock's file was never trained in here.
    """
    if not (run / LOCK_FILE).is_file():
        yield
        return
    with (run / LOCK_FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run: '{run}' is still going on; stop it, or wait for its end") from None
        except OSError:  # where a file system has no locks, trainers have none either
            pass
        yield


def read_run(run: Path) -> StoredRun:
    """What a run is, and its newest checkpoint; errors as of ``slice_run``."""
    if not (run / RUN_FILE).is_file():
        raise CheckpointError(f"run: '{run}' is not the directory of a run (no {RUN_FILE}); give trainer.output of one")
    written = read_identity(run / RUN_FILE)
    identity = written.get("run", {})
    if not identity.keys() >= READ_HERE:
        raise CheckpointError(
            f"{run / RUN_FILE}: not written by matslice train; give trainer.output of one of its runs"
        )
    if not steps_of(run):
        raise CheckpointError(
            f"run: '{run}' has no checkpoint, so there is nothing to slice; train as far as one (trainer.save_every)"
        )
    step, damaged = newest_whole(run)
    for other, damage in damaged.items():
        print(f"warning: {checkpoint_at(run, other)} is damaged ({damage}); slicing step {step}", file=sys.stderr)
    newest = checkpoint_at(run, step)
    stored = StoredRun(run, newest, identity, written.get("told", {}))
    if identity["trainer"].get("average", {}).get("decay") is not None:
        raise ConfigError(
            f"run: '{run}' keeps a running average of its weights (trainer.average.decay), which cannot be cut along"
            f" with them; slice what it has: {run / WEIGHTS}, without run"
        )
    if TrainState.read(newest / STATE_FILE).step >= identity["trainer"]["max_steps"]:
        what = "checkpoint=BASE adapter_path=WEIGHTS" if stored.has_adapter else "checkpoint=WEIGHTS"
        raise ConfigError(
            f"run: '{run}' is at its end ({identity['trainer']['max_steps']} steps), so nothing would go on; slice what"
            f" it trained: {what.replace('WEIGHTS', str(run / WEIGHTS))}, without run"
        )
    return stored


def cut_of(stored: StoredRun, source: Checkpoint, sub: SubModel) -> Cut:
    """The part of a run that goes with the part ``sub`` of what it began from; errors as of ``slice_run``."""
    config = config_of(stored, source)
    within = sub_model_within(config, sub)
    small = slice_config(config, within)
    refuse_needed_towers(stored, small, sub)
    identity = sliced_identity(stored.identity, small, within.spec)
    before = trained_shapes(stored.identity, config)
    optimizer = sliced_optimizer_of(stored, before, within, config.text)
    placed = [(place_parameter(name, within, config.text), shape) for name, shape in before.items()]
    found = [(placement.name, placement.shape(shape)) for placement, shape in placed if placement]
    expected = [(name.replace(IN_MEMORY, ""), shape) for name, shape in trained_shapes(identity, small).items()]
    assert found == expected, "the sliced run trains other parameters, or in another order"
    return Cut(stored, source, sub, within, identity, optimizer)


def config_of(stored: StoredRun, source: Checkpoint) -> ModelConfig:
    """The config of the model that the run works on: of ``source``, without towers that the run left out.

    Raises:
        CheckpointError: The run did not begin from ``source``.
    """
    began_from, found = {stored.identity["base"]}, source.fingerprint()
    if not stored.has_adapter:
        began_from.add(Checkpoint.open(stored.newest / WEIGHTS).fingerprint())
    if found not in began_from:
        own = "" if stored.has_adapter else f", or what it trained so far ({stored.directory / WEIGHTS})"
        base = stored.identity["base"]
        began = "no checkpoint" if base is None else f"one of fingerprint {base:.12}"
        raise CheckpointError(
            f"checkpoint: '{source.path}' (fingerprint {found:.12}) is not what the run '{stored.directory}' began"
            f" from, {began}; give that{own}"
        )
    towers = [modality for modality in source.config.modalities[1:] if stored.identity["towers"].get(modality)]
    config = source.config.only(towers)
    before, now = (
        dict(flatten({key: shape[key] for key in ("model", "towers")})) for shape in (stored.identity, shape_of(config))
    )
    if other := [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]:
        raise CheckpointError(
            f"checkpoint: '{source.path}' has the weights that the run '{stored.directory}' began from, but not its"
            f" config.json ({other[0]} was {before.get(other[0])!r}, now {now.get(other[0])!r}); put that back"
        )
    return config


def sub_model_within(config: ModelConfig, sub: SubModel) -> SubModel:
    """The sub-model of what the run has of its base, which may lack towers."""
    modalities = None if sub.modalities is None else tuple(one for one in sub.modalities if one in config.modalities)
    within = dataclasses.replace(sub, modalities=modalities, vocabulary=None)
    if config.audio is None or not within.has(Modality.audio):
        within = dataclasses.replace(within, audio_layers=None)
    return within


def refuse_needed_towers(stored: StoredRun, small: ModelConfig, sub: SubModel) -> None:
    """Raise SliceError if rows have media that the sub-model has no tower for, as far as the run's log tells."""
    begun = [record for record in read_records(stored.directory / METRICS_FILE) if record["kind"] == "start"]
    media = {Modality.vision: ("images", "images"), Modality.audio: ("audio", "sound")}
    for modality, (key, medium) in media.items():
        rows = sum(begun[-1].get(f"{kind}_rows_with_{key}", 0) for kind in ("train", "validation")) if begun else 0
        if rows and modality not in small.modalities:
            raise SliceError(
                f"slice '{sub.name}': leaves out {modality}, but {rows} rows of the run have {medium}; keep {modality}"
                " among the modalities"
            )


def sliced_optimizer_of(
    stored: StoredRun, shapes: Mapping[str, tuple[int, ...]], sub: SubModel, config: TextConfig
) -> dict[str, Any]:
    """The part of what the run's optimizer remembers of the parameters of these ``shapes``.

    Raises:
        SliceError: As ``slice_optimizer``.
        CheckpointError: The file is damaged.
    """
    path = stored.newest / OPTIMIZER_FILE
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)  # what is cut away is never read
        return slice_optimizer(state, shapes, sub, config)
    except SliceError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: not the state of an optimizer ({error!r}); delete {stored.newest} to slice an earlier checkpoint"
        ) from None
