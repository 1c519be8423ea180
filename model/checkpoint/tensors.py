# SPDX-License-Identifier: Apache-2.0
"""Stored tensors into memory: straight into the tensor that is to hold them, or into a new one."""

from __future__ import annotations

import torch
from torch import Tensor

from model.checkpoint.blocks import StoredPart
from model.checkpoint.reader import Checkpoint
from model.errors import CheckpointError
from model.slicing.cuts import Placement

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPELLED = {dtype: spelled for spelled, dtype in DTYPES.items()}


def read_tensor(checkpoint: Checkpoint, name: str, placement: Placement | None = None) -> Tensor:
    """One tensor of a checkpoint, or the part of it that ``placement`` keeps, on the CPU, in the file's dtype.

    Raises:
        CheckpointError: The file cannot be read, or the tensor is not of floating-point numbers.
    """
    part = StoredPart(checkpoint.stored(name), placement or Placement(name))
    tensor = torch.empty(part.shape, dtype=dtype_of(checkpoint, name))
    read_into(tensor, part)
    return tensor


@torch.no_grad()
def read_into(target: Tensor, part: StoredPart) -> None:
    """Fill ``target`` with a stored part of its shape, converted to its dtype and device block by block."""
    assert tuple(target.shape) == part.shape, part.name
    stored_dtype = DTYPES[part.dtype]
    flat, at = target.detach().reshape(-1), 0
    assert flat.data_ptr() == target.data_ptr(), "a contiguous tensor is filled in place"
    direct = target.device.type == "cpu" and target.dtype is stored_dtype
    for block in part.blocks():
        piece = flat[at : at + block.nbytes // stored_dtype.itemsize]
        at += len(piece)
        if direct:
            block.read(into=piece.view(torch.uint8).numpy())
        else:
            piece.copy_(torch.from_numpy(block.read()).view(stored_dtype))


def dtype_of(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """A stored tensor's dtype.

    Raises:
        CheckpointError: It is not one that a model computes in.
    """
    if (spelled := checkpoint.dtype(name)) not in DTYPES:
        raise CheckpointError(
            f"{checkpoint.path}: '{name}' is stored as {spelled}; weights are {', '.join(DTYPES)}; quantised"
            " checkpoints are not read: give the one it was made from"
        )
    return DTYPES[spelled]
