# SPDX-License-Identifier: Apache-2.0
"""Live models, and tensors in memory, to a checkpoint directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.blocks import BLOCK_BYTES, Bytes
from model.checkpoint.names import PER_LAYER_TABLE, in_file
from model.checkpoint.shapes import model_shapes
from model.checkpoint.tensors import SPELLED
from model.checkpoint.writer import SHARD_BYTES, write_checkpoint
from model.config import ModelConfig
from model.errors import CheckpointError
from model.gemma3n import Gemma3n
from model.layers.embedding import HostTable
from model.slicing.count import Layout


@dataclass(frozen=True)
class LivePart:
    """A tensor in memory, to be written whole."""

    name: str
    tensor: Tensor

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        return SPELLED[self.tensor.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.tensor.nbytes

    def blocks(self) -> Iterator[LiveBlock]:
        """The tensor in pieces; one on another device is fetched whole."""
        flat = self.tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        for piece in flat.split(BLOCK_BYTES):
            yield LiveBlock(piece)


@dataclass(frozen=True)
class LiveBlock:
    """Some bytes of a tensor in memory."""

    piece: Tensor

    def read(self) -> Bytes:
        """The bytes themselves, no copy."""
        return self.piece.numpy()


@dataclass(frozen=True)
class TablePart:
    """A table that is not on the model's device, to be written whole, a few rows at a time."""

    name: str
    table: HostTable

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        return SPELLED[self.table.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.table.source.shape

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.table.dtype.itemsize

    def blocks(self) -> Iterator[RowsBlock]:
        """The table in pieces."""
        rows, columns = self.shape
        step = max(1, BLOCK_BYTES // (columns * self.table.dtype.itemsize))
        for first in range(0, rows, step):
            yield RowsBlock(self.table, range(first, min(first + step, rows)))


@dataclass(frozen=True)
class RowsBlock:
    """Neighbouring rows of such a table."""

    table: HostTable
    rows: range

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return len(self.rows) * self.table.source.shape[1] * self.table.dtype.itemsize

    def read(self) -> Bytes:
        """The bytes, from where the table lies."""
        kept = torch.empty(len(self.rows), self.table.source.shape[1], dtype=self.table.dtype)
        self.table.source.read(torch.arange(self.rows.start, self.rows.stop), kept)
        return kept.reshape(-1).view(torch.uint8).numpy()


def save(
    model: Gemma3n,
    target: Path,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    extras: Callable[[Path], None] | None = None,
) -> None:
    """Write a live model as a checkpoint that ``load`` and transformers read, with the towers the model has.

    Without towers it is the checkpoint of a text-only model, also if the model was read from a multimodal one.
    With only one of the two, transformers does not read it: it knows no Gemma 3n with one tower.

    Args:
        model: The model; a LoRA adapter must be merged first.
        target: A directory that does not exist or is empty.
        max_shard_bytes: Size of a weight file; a single larger tensor gets a file of its own.
        overwrite: Whether another checkpoint at ``target`` may be replaced.
        extras: Called with the directory being written, to add files such as the tokenizer's.

    Raises:
        CheckpointError: ``target`` is in use, or the model has an adapter in it.
    """
    check_plain(model, str(target))
    parts: list[LivePart | TablePart] = [
        LivePart(in_file(name, model.config), parameter.detach()) for name, parameter in model.named_parameters()
    ]
    if (table := model.per_layer_table) is not None:
        parts.append(TablePart(in_file(PER_LAYER_TABLE, model.config), table))
    write_checkpoint(
        parts,
        model.config,
        target,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
        extras=None if extras is None else lambda directory, _: extras(directory),
    )


def save_tensors(
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    target: Path,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    extras: Callable[[Path], None] | None = None,
) -> None:
    """Write named tensors in memory and their config as a checkpoint directory; see ``save`` for the arguments.

    Raises:
        CheckpointError: ``target`` is in use, or a name comes twice.
    """
    write_checkpoint(
        [LivePart(in_file(name, config), tensor) for name, tensor in tensors],
        config,
        target,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
        extras=None if extras is None else lambda directory, _: extras(directory),
    )


def check_plain(model: Gemma3n, where: str) -> None:
    """Raise CheckpointError unless a model's parameters are those of its config and nothing else.

    An adapter that is attached adds some and renames others.
    """
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if (table := model.per_layer_table) is not None:
        found[PER_LAYER_TABLE] = table.source.shape
    expected = model_shapes(model.config, Layout.used)
    if odd := sorted({name for name, _ in found.items() ^ expected.items()}):
        raise CheckpointError(
            f"{where}: the model's parameters are not those of its config ({len(odd)} differ, the first is"
            f" '{odd[0]}'); if an adapter is attached, merge it first: merge(adapted) gives the plain model"
        )
