# SPDX-License-Identifier: Apache-2.0
"""Slice a run as it stands, so that it goes on as a run of the smaller model; its steps and rows are counted on.

    run.json                        the run's identity, with the model, base and specs of the smaller one
    metrics.jsonl                   the parent's so far
    weights, checkpoints/step_…/    the newest checkpoint: weights or adapter, optimizer, counts, random generators
    base/                           the part of what the run began from, to be given as checkpoint=

A run that trains several sizes goes on doing so if all of them lie in the sub-model, under their names, their
layers numbered as there. If one does not, the sub-model itself is trained from now on (elastic=off): what a size
would be that is larger than the model, nobody can say.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.adapter.lora import AdapterConfig, attach
from model.adapter.targets import TargetSet, pattern_of
from model.checkpoint.directory import check_target, whole_directory
from model.checkpoint.reader import Checkpoint
from model.config import ModelConfig, TextConfig
from model.errors import CheckpointError, ConfigError, SliceError
from model.freezing import Part, freeze, modules_of
from model.gemma3n import Gemma3n
from model.slicing.adapter import slice_adapter
from model.slicing.checkpoint import refuse_within, slice_checkpoint
from model.slicing.config import slice_config
from model.slicing.optimizer import IN_MEMORY, place_parameter, slice_optimizer
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from recipes.slice_check import check as slice_check
from trainer.checkpoint import (
    CHECKPOINTS,
    LOCK_FILE,
    OPTIMIZER_FILE,
    RUN_FILE,
    STATE_FILE,
    WEIGHTS,
    WHOLE_NAME,
    flatten,
    read_identity,
)
from trainer.elastic import ElasticPolicy
from trainer.sinks import METRICS_FILE, read_records
from trainer.state import TrainState

BASE = "base"  # where the part of what the run began from goes, inside the sliced run
Write = Callable[[Checkpoint, Path, SubModel], None]


@dataclass(frozen=True)
class StoredRun:
    """A run that is to be sliced: what it is, and where its newest checkpoint lies."""

    directory: Path
    newest: Path
    identity: dict[str, Any]  # as ``recipes.train`` makes it
    told: dict[str, Any]

    @property
    def adapter(self) -> AdapterConfig | None:
        """The adapter it trains; None if it trains weights."""
        written = self.identity["adapter"]
        return written and AdapterConfig(**written | {"targets": [TargetSet(target) for target in written["targets"]]})

    @property
    def frozen(self) -> list[Part]:
        """Parts of the model that it does not train, of those it could."""
        return [Part(part) for part in self.identity["freeze"]]


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
        stored = read_run(run)
        config = config_of(stored, source)
        within = sub_model_within(config, sub)
        small = slice_config(config, within)
        refuse_needed_towers(stored, small, sub)
        identity = sliced_identity(stored, small, within)
        optimizer = sliced_optimizer_of(stored, config, small, within, identity)
        with whole_directory(output, overwrite=overwrite, marker=RUN_FILE) as directory:
            newest = directory / CHECKPOINTS / stored.newest.name
            newest.mkdir(parents=True)
            if stored.adapter is None:
                write(Checkpoint.open(stored.newest / WEIGHTS), newest / WEIGHTS, within)
            else:
                slice_adapter(stored.newest / WEIGHTS, newest / WEIGHTS, sub, source.config)
            torch.save(optimizer, newest / OPTIMIZER_FILE)
            for counted in (STATE_FILE, *(path.name for path in stored.newest.glob("random_*.pt"))):
                shutil.copyfile(stored.newest / counted, newest / counted)
            write(source, directory / BASE, sub)
            identity["base"] = Checkpoint.open(directory / BASE).fingerprint()
            write_beside(stored, identity, directory)
            if check:
                compare(stored, source, sub, within, directory, output)
    return words_to_go_on(output, stored.identity, identity)


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
    if not {"model", "towers", "freeze", "base", "adapter", "specs", "elastic", "trainer"} <= identity.keys():
        raise CheckpointError(
            f"{run / RUN_FILE}: not written by matslice train; give trainer.output of one of its runs"
        )
    whole = [path for path in (run / CHECKPOINTS).glob("step_*") if WHOLE_NAME.fullmatch(path.name)]
    if not whole:
        raise CheckpointError(
            f"run: '{run}' has no checkpoint, so there is nothing to slice; train as far as one (trainer.save_every)"
        )
    newest = max(whole, key=lambda path: int(path.name.removeprefix("step_")))
    stored = StoredRun(run, newest, identity, written.get("told", {}))
    if TrainState.read(newest / STATE_FILE).step >= identity["trainer"]["max_steps"]:
        what = "checkpoint=WEIGHTS" if stored.adapter is None else "checkpoint=BASE adapter_path=WEIGHTS"
        raise ConfigError(
            f"run: '{run}' is at its end ({identity['trainer']['max_steps']} steps), so nothing would go on; slice what"
            f" it trained: {what.replace('WEIGHTS', str(run / WEIGHTS))}, without run"
        )
    return stored


def config_of(stored: StoredRun, source: Checkpoint) -> ModelConfig:
    """The config of the model that the run works on: of ``source``, without towers that the run left out.

    Raises:
        CheckpointError: The run did not begin from ``source``.
    """
    began_from, found = {stored.identity["base"]}, source.fingerprint()
    if stored.adapter is None:
        began_from.add(Checkpoint.open(stored.newest / WEIGHTS).fingerprint())
    if found not in began_from:
        own = "" if stored.adapter else f", or what it trained so far ({stored.directory / WEIGHTS})"
        base = stored.identity["base"]
        began = "no checkpoint" if base is None else f"one of fingerprint {base:.12}"
        raise CheckpointError(
            f"checkpoint: '{source.path}' (fingerprint {found:.12}) is not what the run '{stored.directory}' began"
            f" from, {began}; give that{own}"
        )
    towers = [modality for modality in source.config.modalities[1:] if stored.identity["towers"].get(modality)]
    config = source.config.only(towers)
    before, now = (dict(flatten(shape)) for shape in ({k: stored.identity[k] for k in ("model", "towers")},
                                                      shape_of(config)))  # fmt: skip
    if other := [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]:
        raise CheckpointError(
            f"checkpoint: '{source.path}' has the weights that the run '{stored.directory}' began from, but not its"
            f" config.json ({other[0]} was {before.get(other[0])!r}, now {now.get(other[0])!r}); put that back"
        )
    return config


def shape_of(config: ModelConfig) -> dict[str, Any]:
    """What an identity says of the model, as JSON has it."""
    towers = {"vision": config.vision, "audio": config.audio}
    shape = {"model": dataclasses.asdict(config.text)}
    shape["towers"] = {name: tower and dataclasses.asdict(tower) for name, tower in towers.items()}
    return json.loads(json.dumps(shape, default=str))


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


def sliced_identity(stored: StoredRun, small: ModelConfig, sub: SubModel) -> dict[str, Any]:
    """What ``matslice train`` will say the sliced run is; its base is not there yet."""
    empty = Gemma3n.build(small, device="meta")
    identity = stored.identity | shape_of(small) | sliced_sizes(stored.identity, small.text, sub.spec)
    identity["freeze"] = [part.value for part in stored.frozen if modules_of(empty, part)]
    if stored.adapter is not None:
        names = [name for name, _ in empty.named_modules()]
        targets = [one.value for one in stored.adapter.targets if any(map(pattern_of(one).fullmatch, names))]
        identity["adapter"] = stored.identity["adapter"] | {"targets": targets}
    return identity


def sliced_sizes(identity: Mapping[str, Any], small: TextConfig, spec: SliceSpec) -> dict[str, Any]:
    """The sizes that are trained from now on, and how they are drawn; the module says which."""
    written = [SliceSpec(one["name"], tuple(one["kept_layers"]), tuple(one["ffn_widths"])) for one in identity["specs"]]
    inside = [size_within(size, spec) for size in written]
    trained = [size for size in inside if size is not None]
    is_elastic = identity["elastic"]["policy"] != ElasticPolicy.off
    if is_elastic and len(trained) == len(written) and not all(size.is_full(small) for size in trained):
        return {"specs": [dataclasses.asdict(size) for size in trained], "elastic": identity["elastic"]}
    return {
        "specs": [dataclasses.asdict(SliceSpec.full(small))],
        "elastic": {"policy": ElasticPolicy.off.value, "probabilities": {}},
    }


def size_within(size: SliceSpec, spec: SliceSpec) -> SliceSpec | None:
    """A size of the parent as a part of the sub-model ``spec``; None if it has what the sub-model lacks."""
    widest = dict(zip(spec.kept_layers, spec.ffn_widths, strict=True))
    if any(width > widest.get(layer, 0) for layer, width in zip(size.kept_layers, size.ffn_widths, strict=True)):
        return None
    return SliceSpec(size.name, tuple(map(spec.kept_layers.index, size.kept_layers)), size.ffn_widths)


def sliced_optimizer_of(
    stored: StoredRun, config: ModelConfig, small: ModelConfig, sub: SubModel, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """The optimizer's state of the sub-model; errors as of ``slice_optimizer``, or CheckpointError if it is damaged."""
    path = stored.newest / OPTIMIZER_FILE
    shapes = trained_shapes(stored, config)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        sliced = slice_optimizer(state, shapes, sub, config.text)
    except SliceError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: not the state of an optimizer ({error!r}); delete {stored.newest} to slice an earlier checkpoint"
        ) from None
    placed = {name: place_parameter(name, sub, config.text) for name in shapes}
    expected = trained_shapes(dataclasses.replace(stored, identity=dict(identity)), small)
    found = [(placement.name, placement.shape(shapes[name])) for name, placement in placed.items() if placement]
    assert found == [(name.replace(IN_MEMORY, ""), shape) for name, shape in expected.items()], "the order of numbers"
    return sliced


def trained_shapes(stored: StoredRun, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of what a run trains of a model of this config, in the order that its optimizer has them."""
    empty = Gemma3n.build(config, device="meta")
    if stored.adapter is None:
        freeze(empty, stored.frozen)
    model = empty if stored.adapter is None else attach(empty, stored.adapter)
    return {name: tuple(own.shape) for name, own in model.named_parameters() if own.requires_grad}


def write_beside(stored: StoredRun, identity: Mapping[str, Any], directory: Path) -> None:
    """What a run's directory has beside its checkpoint: what it is, its log so far, and the link to its weights."""
    written = {"run": identity, "told": stored.told}
    (directory / RUN_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if (stored.directory / METRICS_FILE).is_file():
        shutil.copyfile(stored.directory / METRICS_FILE, directory / METRICS_FILE)
    (directory / WEIGHTS).symlink_to(Path(CHECKPOINTS, stored.newest.name, WEIGHTS), target_is_directory=True)


def compare(
    stored: StoredRun, source: Checkpoint, sub: SubModel, within: SubModel, directory: Path, output: Path
) -> None:
    """Raise CheckpointError unless the sub-model says what its parent says under the same spec."""
    before, now = (newest / WEIGHTS for newest in (stored.newest, directory / CHECKPOINTS / stored.newest.name))
    if stored.adapter is None:
        slice_check(Checkpoint.open(before), within, now, adapter=None, cut_adapter=None, output=output)
    else:
        slice_check(source, sub, directory / BASE, adapter=before, cut_adapter=now, output=output)


def words_to_go_on(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is said differently to ``matslice train``: places, and what of the settings has no meaning any more."""
    words = [f"checkpoint={output / BASE}", f"trainer.output={output}", "trainer.resume=true"]
    if towers_of(now) != towers_of(before):
        words.append(f"modalities=[{','.join(['text', *towers_of(now)])}]")
    if now["freeze"] != before["freeze"]:
        words.append(f"freeze=[{','.join(now['freeze'])}]")
    if now["adapter"] != before["adapter"]:
        words.append(f"adapter.targets=[{','.join(now['adapter']['targets'])}]")
    if now["elastic"] != before["elastic"]:
        words.append("elastic=off")
    elif now["elastic"]["policy"] != ElasticPolicy.off and now["model"] != before["model"]:
        for size in now["specs"]:
            layers = range(len(now["model"]["layer_types"]))
            skipped = ",".join(str(layer) for layer in layers if layer not in size["kept_layers"])
            widths = ",".join(map(str, size["ffn_widths"]))
            words += [f"sizes.{size['name']}.{key}" for key in (f"skip_layers=[{skipped}]", f"ffn_widths=[{widths}]")]
    return words


def towers_of(identity: Mapping[str, Any]) -> list[str]:
    """The media that the model of a run takes in."""
    return [medium for medium, tower in identity["towers"].items() if tower]
