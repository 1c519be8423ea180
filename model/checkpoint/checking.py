# SPDX-License-Identifier: Apache-2.0
"""Whether the tensors of a checkpoint are those of its ``config.json``: names and shapes, strict both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from model.checkpoint.blocks import StoredPart
from model.checkpoint.names import TIED_HEAD, TOKEN_TABLE, modality_of
from model.checkpoint.reader import Checkpoint, first_few
from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig
from model.errors import CheckpointError
from model.slicing.count import Layout
from model.slicing.cuts import Placement
from model.tower_config import Modality
from model.vision.layout import older_layout

WEIGHT_DTYPES = ("BF16", "F32", "F16", "F64")


def check_tensors(checkpoint: Checkpoint, modalities: Iterable[Modality] | None) -> ModelConfig:
    """The config of what is wanted of a checkpoint, after a look at the shapes of its tensors.

    Keys and values of readers and a copy of the head may be there or not; towers of other modalities than
    those asked for are not looked at.

    Raises:
        CheckpointError: Names all that is missing, extra or misshapen.
        ConfigError: There is no tower for one of the modalities.
    """
    modalities = None if modalities is None else {Modality.text, *modalities}
    wanted = checkpoint.config if modalities is None else checkpoint.config.only(modalities)
    needed, known = model_shapes(wanted, Layout.used), model_shapes(wanted, Layout.published)
    known[TIED_HEAD] = known[TOKEN_TABLE]
    names = (name for name in checkpoint.names() if modalities is None or modality_of(name) in modalities)
    found = {name: checkpoint.shape(name) for name in names}
    if wanted.vision is not None and (told := older_layout(found)):
        raise CheckpointError(f"{checkpoint.path}: {told} (modalities without vision)")
    refuse_packed(checkpoint, sorted(found))
    if told := misfit(found, needed, known, {name: checkpoint.stored(name).name for name in found}):
        raise CheckpointError(
            f"{checkpoint.path}: tensors do not fit config.json: {told}; {remedy(checkpoint, found, needed, known)}"
        )
    refuse_mixed(checkpoint, sorted(found))
    return wanted


def by_dtypes(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, list[str]]:
    """Names of tensors, by the dtype they are stored in."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(checkpoint.dtype(name), []).append(name)
    return grouped


def refuse_packed(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Raise CheckpointError unless all these tensors are of dtypes that weights are stored in.

    To be asked before names and shapes are: those of packed weights are others, which would say too little.
    """
    for dtype, some in by_dtypes(checkpoint, names).items():
        if dtype not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"{checkpoint.path}: {len(some)} tensors are stored as {dtype} ({first_few(some)}); weights are"
                f" {', '.join(WEIGHT_DTYPES)}: packed and quantised checkpoints cannot be cut, give the one it was"
                " made from"
            )


def refuse_mixed(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Raise CheckpointError unless all these tensors are of one dtype."""
    by_dtype = by_dtypes(checkpoint, names)
    if len(by_dtype) > 1:
        most, *others = sorted(by_dtype, key=lambda dtype: -len(by_dtype[dtype]))
        raise CheckpointError(
            f"{checkpoint.path}: most tensors are {most}, but {len(by_dtype[others[0]])} are {others[0]}"
            f" ({first_few(by_dtype[others[0]])}); a checkpoint has one dtype: store all in one, or copy it anew"
        )


def remedy(
    checkpoint: Checkpoint,
    found: Mapping[str, Sequence[int]],
    needed: Iterable[str],
    known: Mapping[str, Sequence[int]],
) -> str:
    """What to do about a misfit; arguments as of ``misfit``."""
    missing, extra = set(needed) - found.keys(), found.keys() - known.keys()
    if missing and {tail_of(name) for name in missing} <= {tail_of(name) for name in extra}:
        return "its names are of another layout: load it with transformers and save it anew by save_pretrained"
    if extra and not missing and all(tuple(found[name]) == tuple(known[name]) for name in found.keys() & known.keys()):
        files = sorted({checkpoint.stored(name).path.name for name in extra})
        return f"remove what is extra from {first_few(files)}, or save the model anew by transformers' save_pretrained"
    return "the two are not of one model, or the copy is incomplete: copy both anew"


def tail_of(name: str) -> str:
    """What of a name is the same in every layout: from the layer on, or its last two words."""
    return name[name.find("layers.") :] if "layers." in name else ".".join(name.split(".")[-2:])


def misfit(
    found: Mapping[str, Sequence[int]],
    needed: Iterable[str],
    known: Mapping[str, Sequence[int]],
    spelled: Mapping[str, str] | None = None,
) -> str:
    """All that is missing, extra or misshapen in a file, in words; empty if nothing is.

    Args:
        found: Names and shapes of what is there.
        needed: Names of what must be there.
        known: Names and shapes of what may be there.
        spelled: How the file calls what is there, if otherwise.
    """
    spelled = spelled or {}
    misshapen = [
        f"'{name}' has shape {tuple(found[name])} instead of {tuple(known[name])}"
        for name in sorted(found.keys() & known.keys())
        if tuple(found[name]) != tuple(known[name])
    ]
    problems = (
        ("missing", [f"'{name}'" for name in sorted(set(needed) - found.keys())]),
        ("extra", [f"'{spelled.get(name, name)}'" for name in sorted(found.keys() - known.keys())]),
        ("misshapen", misshapen),
    )
    return "; ".join(f"{len(names)} {kind} ({first_few(names)})" for kind, names in problems if names)


def check_head(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if the file holds a head that is not the token table.

    Gemma 3n's head *is* the token table. A different one, as merging an adapter of the head leaves
    behind, would be lost without a word.
    """
    if TIED_HEAD not in checkpoint.names():
        return
    head, table = (StoredPart(checkpoint.stored(name), Placement(name)) for name in (TIED_HEAD, TOKEN_TABLE))
    for ours, theirs in zip(head.blocks(), table.blocks(), strict=True):
        if not np.array_equal(ours.read(), theirs.read()):
            raise CheckpointError(
                f"{checkpoint.path}: '{TIED_HEAD}' differs from '{TOKEN_TABLE}', but Gemma 3n's head is tied to it;"
                " a model with a head of its own cannot be loaded or cut; give the one it was made from"
            )
