# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint is what it says it is: its files, its tensors, and the part of a parent that it claims to be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from model.checkpoint.blocks import StoredPart
from model.checkpoint.checking import check_head, check_tensors
from model.checkpoint.names import ours
from model.checkpoint.reader import INDEX_FILE, Checkpoint, first_few, sha256
from model.checkpoint.writer import Part
from model.errors import CheckpointError
from model.slicing.checkpoint import parts
from model.slicing.config import slice_config
from model.slicing.cuts import Placement
from model.slicing.dead_kv import DeadKV
from model.slicing.lineage import LINEAGE_FILE, lineage_of, read_lineage, sub_model_of

COUNTS = (
    "parameters", "text_parameters", "effective_parameters", "effective_parameters_in_published_layout",
)  # fmt: skip
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
    if not (path / LINEAGE_FILE).is_file():
        refuse(path, faults)
        told(f"there is no {LINEAGE_FILE}: no checksums or lineage to check")
        return
    lineage = read_lineage(path)
    faults += faults_of_files(path, lineage.get("checksums"), told)
    sub = sub_model_of(lineage, str(path / LINEAGE_FILE))
    if list(wanted.text.intermediate_size) != list(sub.spec.ffn_widths):
        faults.append(f"{LINEAGE_FILE} tells of widths {list(sub.spec.ffn_widths)}, config.json of others")
    if [modality.value for modality in wanted.modalities] != lineage["modalities"]:
        faults.append(f"{LINEAGE_FILE} tells of {lineage['modalities']}, config.json has {list(wanted.modalities)}")
    if parent is not None:
        faults += faults_against(checkpoint, Checkpoint.open(parent), lineage, told)
    refuse(path, faults)
    layers = f"{len(sub.spec.kept_layers)} of {lineage['parent']['layers']} layers"
    told(f"lineage: '{sub.name}', {layers}, of the parent {lineage['parent']['fingerprint'][:16]}…")


def refuse(path: Path, faults: list[str]) -> None:
    """Raise CheckpointError if there are any."""
    if faults:
        raise CheckpointError(f"{path}: {'; '.join(faults)}; copy it anew, or slice again")


def faults_of_index(checkpoint: Checkpoint) -> Iterator[str]:
    """What an index says wrongly beside where tensors are, which is checked on opening."""
    path = checkpoint.path / INDEX_FILE
    if not path.is_file():
        return
    told = json.loads(path.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
    found = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    if told is not None and told != found:
        yield f"{INDEX_FILE} says total_size {told}, but the tensors have {found} bytes"


def faults_of_files(path: Path, checksums: object, told: Told) -> Iterator[str]:
    """Files that are missing or changed since the slice was written."""
    if not isinstance(checksums, dict):
        yield f"{LINEAGE_FILE} has no checksums"
        return
    missing = sorted(name for name in checksums if not (path / name).is_file())
    changed = [name for name in sorted(checksums.keys() - set(missing)) if sha256(path / name) != checksums[name]]
    if missing:
        yield f"{first_few(missing)} missing"
    if changed:
        yield f"{first_few(changed)} changed since the slice was written (SHA-256 differs)"
    if not missing and not changed:
        told(f"{len(checksums)} files have the SHA-256 that {LINEAGE_FILE} says")


def faults_against(checkpoint: Checkpoint, parent: Checkpoint, lineage: dict[str, object], told: Told) -> Iterator[str]:
    """How a sub-model differs from that part of a parent."""
    sub = sub_model_of(lineage, str(checkpoint.path / LINEAGE_FILE))
    dead_kv = DeadKV(str(lineage.get("dead_kv", DeadKV.keep)))
    sub.check(parent.config)
    wanted = check_tensors(parent, sub.modalities)
    expected = lineage_of(parent, wanted, sub, dead_kv)
    claimed = lineage.get("parent")
    if not isinstance(claimed, dict) or claimed.get("fingerprint") != expected["parent"]["fingerprint"]:
        yield f"{parent.path} is another parent than {LINEAGE_FILE} says (fingerprints differ)"
    for key in COUNTS:
        if lineage.get(key) != expected[key]:
            yield f"{LINEAGE_FILE} says {lineage.get(key)} {key.replace('_', ' ')}, it should be {expected[key]}"
    if "merged" in lineage:
        told("an adapter was merged since, so the tensors are not the parent's")
        return
    differing: list[str] = []
    count = 0
    for part in parts(parent, wanted, sub, dead_kv, slice_config(parent.config, sub)):
        name = ours(part.name)
        if name not in checkpoint.tensors:
            yield f"'{part.name}' is missing"
            continue
        mine = StoredPart(checkpoint.stored(name), Placement(part.name))
        if mine.shape != part.shape or digest(mine) != digest(part):
            differing.append(part.name)
        count += 1
    if differing:
        yield f"{len(differing)} tensors differ from the parent's ({first_few(differing)})"
    else:
        told(f"{count} tensors are the parent's, byte for byte")


def digest(part: Part) -> bytes:
    """A tensor's SHA-256."""
    found = hashlib.sha256()
    for block in part.blocks():
        found.update(block.read().data)
    return found.digest()
