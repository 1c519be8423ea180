# SPDX-License-Identifier: Apache-2.0
"""A part of a stored tensor, read in blocks of bounded size: whatever the tensor's size, memory is a few blocks.

A tensor is taken as rows (its first axis) of bytes. Rows that a part leaves out are not read, unless they are too few
to be worth a request of their own; what it leaves out of every row is read with the row and dropped.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.checkpoint.format import ITEM_BYTES, StoredTensor
from model.errors import CheckpointError
from model.slicing.cuts import Placement

Bytes = npt.NDArray[np.uint8]
BLOCK_BYTES = 4 << 20  # of one request, unless a single row is larger
GAP_BYTES = 64 << 10  # reading over so much costs less than a request


class Scratch(threading.local):
    """Memory of a thread for what it reads only to drop a part of it; the next block uses it again.

    The system hands out fresh memory page by page, filled with zeros: for every block that takes longer than
    copying what is kept.
    """

    memory: Bytes = np.empty(0, dtype=np.uint8)

    def of(self, nbytes: int) -> Bytes:
        """So many bytes of it, which hold anything."""
        if len(self.memory) < nbytes:
            self.memory = np.empty(nbytes, dtype=np.uint8)
        return self.memory[:nbytes]


SCRATCH = Scratch()


@dataclass(frozen=True)
class Block:
    """Some neighbouring rows of a stored tensor, and what is kept of them."""

    tensor: StoredTensor
    start: int  # bytes from the beginning of the file
    rows: int
    row_bytes: int
    kept_rows: tuple[range, ...]  # counted from the block's first
    kept_bytes: tuple[range, ...]  # of every row

    @property
    def nbytes_read(self) -> int:
        """What is asked of the file."""
        return self.rows * self.row_bytes

    @property
    def nbytes(self) -> int:
        """What is kept of it."""
        return sum(map(len, self.kept_rows)) * sum(map(len, self.kept_bytes))

    def read(self, into: Bytes | None = None) -> Bytes:
        """The kept bytes, row after row: put into an array of ``nbytes``, or into a new one.

        Raises:
            CheckpointError: The file cannot be read, or has become shorter.
        """
        kept = np.empty(self.nbytes, dtype=np.uint8) if into is None else into
        if self.nbytes == self.nbytes_read:
            self.fill(kept)
            return kept
        rows = SCRATCH.of(self.nbytes_read).reshape(self.rows, self.row_bytes)
        self.fill(rows.reshape(-1))
        first, *more = self.kept_rows
        if more:
            rows = rows[np.concatenate([np.arange(some.start, some.stop) for some in self.kept_rows])]
        else:
            rows = rows[first.start : first.stop]
        columns, at = kept.reshape(len(rows), -1), 0
        for some in self.kept_bytes:
            columns[:, at : at + len(some)] = rows[:, some.start : some.stop]
            at += len(some)
        return kept

    def fill(self, buffer: Bytes) -> None:
        """Read the block's rows into ``buffer``, which has just their size."""
        rest, at = buffer.data, self.start
        try:
            descriptor = os.open(self.tensor.path, os.O_RDONLY)
            try:
                while rest:
                    if not (count := os.preadv(descriptor, [rest], at)):
                        raise CheckpointError(
                            f"{self.tensor.path}: ends within '{self.tensor.name}'; it was changed while it was read"
                        )
                    rest, at = rest[count:], at + count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(
                f"{self.tensor.path}: cannot read '{self.tensor.name}' ({error.strerror}); check the disk it is on"
            ) from None


@dataclass(frozen=True)
class StoredPart:
    """The part of a stored tensor that a placement keeps, under the name it gets."""

    tensor: StoredTensor
    placement: Placement

    @property
    def name(self) -> str:
        """The name in the sub-model."""
        return self.placement.name

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the sub-model."""
        return self.placement.shape(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """Size in the sub-model."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def blocks(self) -> Iterator[Block]:
        """What to read, in order; the kept bytes of all blocks, one behind the other, are the part."""
        if not self.nbytes:
            return
        rows, columns, *inner = (*self.tensor.shape, 1, 1)  # of a vector every entry is a row, a scalar is one
        kept = {some.axis: some.ranges for some in self.placement.kept}
        assert kept.keys() <= {0, 1}, "the table cuts rows and columns"
        inner_bytes = math.prod(inner) * ITEM_BYTES[self.dtype]
        kept_bytes = tuple(
            range(some.start * inner_bytes, some.stop * inner_bytes) for some in kept.get(1, (range(columns),))
        )
        row_bytes = columns * inner_bytes
        for first, stop, ranges in grouped(kept.get(0, (range(rows),)), row_bytes):
            start = self.tensor.start + first * row_bytes
            yield Block(self.tensor, start, stop - first, row_bytes, ranges, kept_bytes)


def grouped(kept: tuple[range, ...], row_bytes: int) -> Iterator[tuple[int, int, tuple[range, ...]]]:
    """Kept rows in groups of at most ``BLOCK_BYTES``: the first row, where the group stops, its rows from there on."""
    most, gap = max(1, BLOCK_BYTES // row_bytes), GAP_BYTES // row_bytes
    group: list[range] = []
    for some in kept:
        for first in range(some.start, some.stop, most):
            piece = range(first, min(first + most, some.stop))
            if group and (piece.start - group[-1].stop > gap or piece.stop - group[0].start > most):
                yield group_of(group)
                group = []
            group.append(piece)
    if group:
        yield group_of(group)


def group_of(pieces: list[range]) -> tuple[int, int, tuple[range, ...]]:
    """The first row, where the last piece stops, and the pieces counted from the first row."""
    first = pieces[0].start
    return first, pieces[-1].stop, tuple(range(piece.start - first, piece.stop - first) for piece in pieces)
