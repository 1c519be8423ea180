# SPDX-License-Identifier: Apache-2.0
"""A checkpoint directory to a model, strict both ways; with a spec, only the sub-model is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from model.checkpoint.blocks import StoredPart
from model.checkpoint.checking import check_head, check_tensors
from model.checkpoint.mapped import RowsOnDisk
from model.checkpoint.names import PER_LAYER_TABLE
from model.checkpoint.reader import Checkpoint
from model.checkpoint.shapes import model_shapes
from model.checkpoint.tensors import read_into
from model.errors import ConfigError
from model.gemma3n import Gemma3n
from model.layers.embedding import RowsInMemory, RowSource, TablePlacement
from model.slicing.config import slice_config
from model.slicing.count import Layout
from model.slicing.cuts import place
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality


def load(
    path: Path | str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    spec: SliceSpec | None = None,
    modalities: Iterable[Modality] | None = None,
    per_layer_table: TablePlacement = TablePlacement.device,
) -> Gemma3n:
    """The model of a checkpoint directory, as it is or cut to ``spec`` while it is read, in evaluation mode.

    Args:
        path: A checkpoint directory, single-file or sharded.
        dtype: What to compute in; float16 is refused.
        device: Where to put the parameters.
        spec: A part of the checkpoint's model, of which only the needed bytes are read.
        modalities: What the model shall take in; other towers are left on disk, and need not be in order. None:
            all that the checkpoint has.
        per_layer_table: Where the table of per-layer embeddings shall lie. Away from the device it is no parameter;
            mapped, its bytes are not read, and the checkpoint must stay as it is while the model is used.

    Raises:
        CheckpointError: Tensors are missing, unknown or of another shape than ``config.json`` says.
        ConfigError: The dtype or ``config.json`` is of a kind that does not work, or there is no tower for one of
            the modalities.
        SliceError: The spec does not fit.
    """
    check_dtype(dtype)
    checkpoint = Checkpoint.open(path)
    wanted = check_tensors(checkpoint, modalities)
    sub = SubModel(spec or SliceSpec.full(wanted.text))
    sliced = slice_config(wanted, sub)
    check_head(checkpoint)

    aside = None
    if per_layer_table is not TablePlacement.device:
        placement = place(PER_LAYER_TABLE, sub, wanted.text)
        assert placement is not None
        aside = rows_aside(StoredPart(checkpoint.stored(PER_LAYER_TABLE), placement), per_layer_table, dtype)
    gemma = Gemma3n.build(sliced, device=device, dtype=dtype, per_layer_rows=aside)
    parameters = dict(gemma.named_parameters())
    for name in model_shapes(wanted, Layout.used):
        if aside is not None and name == PER_LAYER_TABLE:
            continue
        if placement := place(name, sub, wanted.text):
            read_into(parameters.pop(placement.name).data, StoredPart(checkpoint.stored(name), placement))
    assert not parameters, f"the table of cuts does not fill {sorted(parameters)}"
    return gemma.eval()


def rows_aside(part: StoredPart, placement: TablePlacement, dtype: torch.dtype) -> RowSource:
    """A stored table that is not put on the device: read into the host's memory, or left in its file."""
    if placement is TablePlacement.mmap:
        return RowsOnDisk(part)
    table = torch.empty(part.shape, dtype=dtype)
    read_into(table, part)
    return RowsInMemory(table)


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ConfigError for dtypes that Gemma 3n does not survive."""
    if dtype is torch.float16:
        raise ConfigError("dtype float16: Gemma 3n's hidden states overflow in it; use bfloat16 or float32")
    if dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ConfigError(f"dtype {dtype}: a model is loaded in bfloat16, float32 or float64")
