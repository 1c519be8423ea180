# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint is what it says it is: its files, its tensors, and the part of a parent that it claims to be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.checkpoint.blocks import StoredPart
from model.checkpoint.checking import check_head, check_tensors
from model.checkpoint.names import ours, unused
from model.checkpoint.reader import INDEX_FILE, Checkpoint, first_few, sha256
from model.checkpoint.writer import Part
from model.config import CONFIG_FILE, ModelConfig
from model.errors import CheckpointError, ConfigError, SliceError, counted
from model.json_object import json_object
from model.slicing.adapter import ADAPTER_CONFIG_FILE, ADAPTER_DIRECTORY, ADAPTER_WEIGHTS_FILE
from model.slicing.checkpoint import parts
from model.slicing.config import slice_config
from model.slicing.cuts import Placement
from model.slicing.dead_kv import DeadKV
from model.slicing.lineage import LINEAGE_FILE, counts_of, read_lineage, sub_model_of
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel, check_audio_layers

Told = Callable[[str], None]


def verify(path: Path, *, parent: Path | None = None, told: Told = print) -> None:
    """Check a checkpoint directory, every byte of it.

    Args:
        path: A checkpoint; one that was sliced has its ``slice.json``.
        parent: The checkpoint it was cut out of; then every kept byte is compared with it, too.
        told: Hears of each thing that was found in order.

    Raises:
        CheckpointError: Something is not as it should be; all that was found is said.
        ConfigError: ``config.json`` is missing or of another model.
    """
    checkpoint = Checkpoint.open(path)
    wanted = check_tensors(checkpoint, None)
    check_head(checkpoint)
    told(f"{len(checkpoint.names())} tensors have the names and shapes that config.json asks for")
    faults = list(faults_of_index(checkpoint))
    faults += faults_of_strays(checkpoint)
    if not (path / LINEAGE_FILE).is_file():
        if parent is not None:
            faults.append(f"there is no {LINEAGE_FILE}, which says what part of a parent this is")
        refuse(path, faults)
        told(f"there is no {LINEAGE_FILE}: no checksums or lineage to check")
        return
    lineage = read_lineage(path)
    sub = sub_model_of(lineage, str(path / LINEAGE_FILE))
    fingerprint, layers = parent_of(lineage, str(path / LINEAGE_FILE))
    refuse_impossible(lineage, sub, layers, str(path / LINEAGE_FILE))
    weights = {tensor.path.name for tensor in checkpoint.tensors.values()}
    faults += faults_of_files(path, lineage.get("checksums"), {CONFIG_FILE, *weights}, told)
    if (adapter := path / ADAPTER_DIRECTORY).is_dir():
        faults += faults_of_adapter(adapter, told)
    faults += faults_of_claims(wanted, lineage, sub)
    if parent is not None:
        faults += faults_against(checkpoint, Checkpoint.open(parent), lineage, told)
    refuse(path, faults)
    kept = f"{len(sub.spec.kept_layers)} of {layers} layers"
    told(f"lineage: '{sub.name}', {kept}, of the parent {fingerprint[:16]}…")


def parent_of(lineage: Mapping[str, Any], where: str) -> tuple[str, int]:
    """Fingerprint and number of layers of the parent that ``slice.json`` tells of.

    Raises:
        CheckpointError: It tells of none; ``where`` is said of it.
    """
    match lineage.get("parent"):
        case {"fingerprint": str(fingerprint), "layers": int(layers)}:
            return fingerprint, layers
    raise CheckpointError(f"{where}: does not say which parent this is a part of; slice anew")


def dead_kv_of(lineage: Mapping[str, Any], where: str) -> DeadKV:
    """What became of keys and values that nothing reads.

    Raises:
        CheckpointError: Nothing that is known here; ``where`` is said of it.
    """
    try:
        return DeadKV(lineage.get("dead_kv", DeadKV.keep))
    except ValueError as error:
        raise CheckpointError(f"{where}: says nothing known of unread keys and values ({error}); slice anew") from None


def refuse_impossible(lineage: Mapping[str, Any], sub: SubModel, layers: int, where: str) -> None:
    """Raise CheckpointError if no parent of this many layers has such a part; ``where`` is said of it."""
    dead_kv_of(lineage, where)
    try:
        sub.spec.check_layers(layers)
        if sub.audio_layers is not None:
            # Without the parent's number of them, their order can be held against nothing but itself.
            most = lineage["parent"].get("audio_layers", max(sub.audio_layers, default=0) + 1)
            check_audio_layers(sub.name, sub.audio_layers, most)
    except (SliceError, TypeError) as error:
        raise CheckpointError(f"{where}: says what no parent has as a part ({error}); slice anew") from None


def faults_of_claims(config: ModelConfig, lineage: Mapping[str, Any], sub: SubModel) -> Iterator[str]:
    """Where ``slice.json`` tells of another model than ``config.json``."""
    text, audio = config.text, config.audio
    claims: list[tuple[str, object, object]] = [
        ("layers", len(sub.spec.kept_layers), text.num_hidden_layers),
        ("widths", list(sub.spec.ffn_widths), list(text.intermediate_size)),
        ("modalities", lineage["modalities"], [modality.value for modality in config.modalities]),
    ]
    if sub.audio_layers is not None:
        claims.append(("audio layers", len(sub.audio_layers), audio and audio.conf_num_hidden_layers))
    if sub.vocabulary is not None:
        claims.append(("tokens of the text", len(sub.vocabulary), text.vocab_size_per_layer_input))
    counts = counts_of(config, SubModel(SliceSpec.full(text)))
    claims += [(key.replace("_", " "), lineage.get(key), count) for key, count in counts.items()]
    for what, claimed, found in claims:
        if claimed != found:
            yield f"{LINEAGE_FILE} says {claimed} {what}, by config.json it is {found}"


def refuse(path: Path, faults: list[str]) -> None:
    """Raise CheckpointError if there are any."""
    if faults:
        raise CheckpointError(f"{path}: {'; '.join(faults)}; copy it anew, or slice again")


def faults_of_index(checkpoint: Checkpoint) -> Iterator[str]:
    """What an index says wrongly beside where tensors are, which is checked on opening."""
    path = checkpoint.path / INDEX_FILE
    if not path.is_file():
        return
    metadata = json_object(path.read_bytes()).get("metadata")
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    if told is not None and told != found:
        yield f"{INDEX_FILE} says total_size {told}, but the tensors have {found} bytes"


def faults_of_strays(checkpoint: Checkpoint) -> Iterator[str]:
    """Weight files that are none of the checkpoint's: what reads every file it finds would read them, too."""
    known = {tensor.path.name for tensor in checkpoint.tensors.values()}
    if strays := sorted(path.name for path in checkpoint.path.glob("*.safetensors") if path.name not in known):
        yield f"{first_few(strays)} there besides, of which nothing tells"


def faults_of_files(path: Path, checksums: object, needed: set[str], told: Told, *, within: str = "") -> Iterator[str]:
    """Files that are missing, or changed since the slice was written, or were not there then.

    Args:
        path: The directory.
        checksums: What its ``slice.json`` says they are.
        needed: Names of files that must be among them.
        told: Hears of it if all is in order.
        within: What stands before a name when it is told.
    """
    if not isinstance(checksums, dict):
        yield f"{within}{LINEAGE_FILE} has no checksums"
        return
    if unknown := sorted(needed - set(checksums)):
        yield f"{within}{LINEAGE_FILE} has no checksum of {first_few(unknown)}"
    missing = sorted(name for name in checksums if not (path / name).is_file())
    changed = [name for name in sorted(checksums.keys() - set(missing)) if sha256(path / name) != checksums[name]]
    if missing:
        yield f"{first_few([within + name for name in missing])} missing"
    if changed:
        names = first_few([within + name for name in changed])
        yield f"{names} changed since the slice was written (SHA-256 differs)"
    if not missing and not changed:
        told(f"{len(checksums)} files have the SHA-256 that {within}{LINEAGE_FILE} says")


def faults_of_adapter(path: Path, told: Told) -> Iterator[str]:
    """As ``faults_of_files``, of the part of an adapter that lies in a slice."""
    within = f"{path.name}/"
    if not (path / LINEAGE_FILE).is_file():
        yield f"{within}{LINEAGE_FILE} missing"
        return
    needed = {ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE}
    yield from faults_of_files(path, read_lineage(path).get("checksums"), needed, told, within=within)


def faults_against(checkpoint: Checkpoint, parent: Checkpoint, lineage: Mapping[str, Any], told: Told) -> Iterator[str]:
    """How a sub-model differs from that part of a parent."""
    where = str(checkpoint.path / LINEAGE_FILE)
    sub = sub_model_of(lineage, where)
    dead_kv = dead_kv_of(lineage, where)
    if parent_of(lineage, where)[0] != parent.fingerprint():
        yield f"{parent.path} is another parent than {LINEAGE_FILE} says (fingerprints differ)"
    try:
        sub.check(parent.config)
    except (SliceError, ConfigError) as error:
        yield f"it is no part of {parent.path} ({error})"
        return
    wanted = check_tensors(parent, sub.modalities)
    if "merged" in lineage:
        told("an adapter was merged since, so the tensors are not the parent's")
        return
    missing, differing = [], []
    surplus = set(checkpoint.tensors)
    for part in parts(parent, wanted, sub, dead_kv, slice_config(parent.config, sub)):
        name = ours(part.name)
        if name not in checkpoint.tensors:
            missing.append(part.name)
            continue
        surplus.remove(name)
        mine = StoredPart(checkpoint.stored(name), Placement(part.name))
        if (mine.dtype, mine.shape) != (part.dtype, part.shape) or digest(mine) != digest(part):
            differing.append(part.name)
    for what, names in (("missing", missing), ("too many", sorted(surplus)), ("unlike the parent's", differing)):
        if names:
            yield f"{counted(len(names), 'tensor')} {what} ({first_few(names)})"
    if not missing and not surplus and not differing:
        filled = len(unused(checkpoint.config.text)) if dead_kv is DeadKV.zeros else 0
        told(f"{len(checkpoint.tensors) - filled} tensors are the parent's, byte for byte")
        if filled:
            told(f"{filled} keys and values that nothing reads are zeros, norms of them ones, as asked for")


def digest(part: Part) -> bytes:
    """A tensor's SHA-256."""
    found = hashlib.sha256()
    for block in part.blocks():
        found.update(block.read().data)
    return found.digest()
