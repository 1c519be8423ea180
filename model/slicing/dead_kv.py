# SPDX-License-Identifier: Apache-2.0
"""Keys and values of readers: nothing computes with them, but some runtimes refuse a file that lacks them.

Google's files hold them; those that transformers 5.6 and later, or matslice, write from a live model do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from model.checkpoint.blocks import BLOCK_BYTES, Bytes
from model.checkpoint.format import ITEM_BYTES
from model.checkpoint.names import unused
from model.config import TextConfig

# One, by the bytes of a little-endian float: norms of readers are filled with it, projections with zero.
ONE = {"BF16": b"\x80\x3f", "F16": b"\x00\x3c", "F32": b"\x00\x00\x80\x3f", "F64": b"\x00\x00\x00\x00\x00\x00\xf0\x3f"}


class DeadKV(StrEnum):
    """What becomes of the keys and values that nothing computes with."""

    keep = "keep"  # as the parent has them, if it has them
    drop = "drop"  # leave them out: a few per cent smaller
    zeros = "zeros"  # put zeros (norms: ones) where some runtimes look for them


@dataclass(frozen=True)
class FilledPart:
    """A tensor that holds one value everywhere."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    item: bytes  # the value

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def blocks(self) -> Iterator[FilledBlock]:
        """The tensor in pieces."""
        for start in range(0, self.nbytes, BLOCK_BYTES):
            yield FilledBlock(self.item, min(BLOCK_BYTES, self.nbytes - start))


@dataclass(frozen=True)
class FilledBlock:
    """A value, over and over."""

    item: bytes
    nbytes: int

    def read(self) -> Bytes:
        """The bytes."""
        return np.frombuffer(self.item * (self.nbytes // len(self.item)), dtype=np.uint8)


def fillers(config: TextConfig, dtype: str) -> Iterator[FilledPart]:
    """The keys and values of the readers of a model of this config, as zeros and ones."""
    for name, shape in unused(config).items():
        item = ONE[dtype] if name.endswith("k_norm.weight") else bytes(ITEM_BYTES[dtype])
        yield FilledPart(name, dtype, shape, item)
