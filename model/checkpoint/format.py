# SPDX-License-Identifier: Apache-2.0
"""The safetensors file: eight bytes of length, a JSON header, then the tensors' bytes without gaps.

Read and written here by byte positions, so that a part of a tensor can be copied without loading the rest, and
without torch. Source: the format's description in the safetensors README.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from model.errors import CheckpointError

METADATA = {"format": "pt"}  # transformers refuses files without it
METADATA_KEY = "__metadata__"
LENGTH = struct.Struct("<Q")
ALIGNMENT_BYTES = 8  # the header is filled up with spaces to a multiple of it
MOST_HEADER_BYTES = 100_000_000  # the format's own limit
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies on disk: row after row (C order), from byte ``start`` of ``path`` on."""

    path: Path
    name: str  # in the file
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, in the order they lie in it; nothing but the header is read.

    Raises:
        CheckpointError: The file cannot be read, is cut short, or is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = LENGTH.unpack(file.read(LENGTH.size))[0]
            if length > min(MOST_HEADER_BYTES, size - LENGTH.size):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            entries = json.loads(file.read(length))
        data_start = LENGTH.size + length
        tensors = [stored(path, name, entry, data_start) for name, entry in entries.items() if name != METADATA_KEY]
        tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))  # an empty one before its neighbour
        check_places(tensors, data_start, size)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from None
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cut short or not a safetensors file ({error}); copy it anew") from None
    return {tensor.name: tensor for tensor in tensors}


def stored(path: Path, name: str, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    """One entry of a header; raises ValueError, TypeError or KeyError for one that is malformed."""
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (start, stop, *shape)):
        raise ValueError(f"'{name}' has the shape {entry['shape']} at {entry['data_offsets']}")
    if entry["dtype"] not in ITEM_BYTES:
        raise ValueError(f"'{name}' has the dtype {entry['dtype']}, which is unknown here")
    tensor = StoredTensor(path, name, entry["dtype"], shape, data_start + start)
    if stop - start != tensor.nbytes:
        raise ValueError(f"'{name}' has {stop - start} bytes where its shape takes {tensor.nbytes}")
    return tensor


def check_places(tensors: Sequence[StoredTensor], data_start: int, size: int) -> None:
    """Raise ValueError unless the tensors fill the file from ``data_start`` to its end, without gaps."""
    ends = [data_start, *(tensor.start + tensor.nbytes for tensor in tensors)]
    for end, tensor in zip(ends, tensors, strict=False):
        if tensor.start != end:
            raise ValueError(f"'{tensor.name}' begins at byte {tensor.start}, not behind its neighbour at {end}")
    if ends[-1] != size:
        raise ValueError(f"its tensors end at byte {ends[-1]}, the file at {size}")


def header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """All that stands before the first tensor's bytes, for tensors (name, dtype, shape) in this order."""
    entries: dict[str, Any] = {METADATA_KEY: METADATA}
    for (start, stop), (name, dtype, shape) in places(tensors):
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return LENGTH.pack(len(text)) + text


def places(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
) -> Iterator[tuple[tuple[int, int], tuple[str, str, tuple[int, ...]]]]:
    """Each tensor with where its bytes start and stop, one behind the other."""
    listed = list(tensors)
    ends = [0]
    for _, dtype, shape in listed:
        ends.append(ends[-1] + math.prod(shape) * ITEM_BYTES[dtype])
    return zip(pairwise(ends), listed, strict=True)
