# SPDX-License-Identifier: Apache-2.0
"""A checkpoint directory to a model, strict both ways; with a spec, only the sub-model is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from model.checkpoint.names import TIED_HEAD, TOKEN_TABLE, modality_of
from model.checkpoint.reader import Checkpoint, first_few
from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.gemma3n import Gemma3n
from model.slicing.config import slice_config
from model.slicing.count import Layout
from model.slicing.cuts import Placement, place
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from model.vision.layout import older_layout

HEAD_CHUNK_ROWS = 8192  # rows of the head compared with the token table at a time


def load(
    path: Path | str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    spec: SliceSpec | None = None,
    modalities: Iterable[Modality] | None = None,
) -> Gemma3n:
    """The model of a checkpoint directory, as it is or cut to ``spec`` while it is read, in evaluation mode.

    Args:
        path: A checkpoint directory, single-file or sharded.
        dtype: What to compute in; float16 is refused.
        device: Where to put the parameters.
        spec: A part of the checkpoint's model, of which only the needed bytes are read.
        modalities: What the model shall take in; other towers are left on disk, and need not be in order. None:
            all that the checkpoint has.

    Raises:
        CheckpointError: Tensors are missing, unknown or of another shape than ``config.json`` says.
        ConfigError: The dtype or ``config.json`` is of a kind that does not work, or there is no tower for one of
            the modalities.
        SliceError: The spec does not fit.
    """
    check_dtype(dtype)
    checkpoint = Checkpoint.open(path)
    wanted = check_tensors(checkpoint, modalities)
    spec = spec or SliceSpec.full(wanted.text)
    sliced = slice_config(wanted, spec)
    check_head(checkpoint)

    gemma = Gemma3n.build(sliced, device=device, dtype=dtype)
    parameters = dict(gemma.named_parameters())
    for name in model_shapes(wanted, Layout.used):
        placement = place(name, spec, wanted.text)
        if placement is not None:
            parameters.pop(placement.name).data.copy_(checkpoint.part(name, placement))
    assert not parameters, f"the table of cuts does not fill {sorted(parameters)}"
    return gemma.eval()


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ConfigError for dtypes that Gemma 3n does not survive."""
    if dtype is torch.float16:
        raise ConfigError("dtype float16: Gemma 3n's hidden states overflow in it; use bfloat16 or float32")
    if dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ConfigError(f"dtype {dtype}: a model is loaded in bfloat16, float32 or float64")


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
    if told := misfit(found, needed, known):
        raise CheckpointError(
            f"{checkpoint.path}: tensors do not fit config.json: {told};"
            " the two are not of one model, or the copy is incomplete"
        )
    return wanted


def misfit(found: Mapping[str, Sequence[int]], needed: Iterable[str], known: Mapping[str, Sequence[int]]) -> str:
    """All that is missing, extra or misshapen in a file, in words; empty if nothing is.

    Args:
        found: Names and shapes of what is there.
        needed: Names of what must be there.
        known: Names and shapes of what may be there.
    """
    misshapen = [
        f"'{name}' has shape {tuple(found[name])} instead of {tuple(known[name])}"
        for name in sorted(found.keys() & known.keys())
        if tuple(found[name]) != tuple(known[name])
    ]
    problems = (
        ("missing", [f"'{name}'" for name in sorted(set(needed) - found.keys())]),
        ("extra", [f"'{name}'" for name in sorted(found.keys() - known.keys())]),
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
    rows = checkpoint.shape(TIED_HEAD)[0]
    for start in range(0, rows, HEAD_CHUNK_ROWS):
        chunk = Placement(TIED_HEAD, 0, (range(start, min(start + HEAD_CHUNK_ROWS, rows)),))
        if not torch.equal(checkpoint.part(TIED_HEAD, chunk), checkpoint.part(TOKEN_TABLE, chunk)):
            raise CheckpointError(
                f"{checkpoint.path}: '{TIED_HEAD}' differs from '{TOKEN_TABLE}', but Gemma 3n's head is tied to it;"
                " a model with a head of its own cannot be loaded"
            )
