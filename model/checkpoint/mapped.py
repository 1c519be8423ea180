# SPDX-License-Identifier: Apache-2.0
"""A stored table read row by row: its bytes stay in the file until a row is asked for.

What was read stays in the system's cache of files, which gives it back where memory is short, and which all
processes of a machine share.
"""

from __future__ import annotations

import mmap
import os

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.checkpoint.blocks import StoredPart
from model.checkpoint.format import ITEM_BYTES
from model.checkpoint.tensors import DTYPES
from model.errors import CheckpointError


class RowsOnDisk:
    """The rows of a stored part, of which columns may be left out. The file must stay as it is while this is used.

    Raises:
        CheckpointError: The file cannot be read, or has become shorter.
    """

    def __init__(self, part: StoredPart) -> None:
        stored = part.tensor
        assert len(stored.shape) == 2, part.name
        kept = {some.axis: some.ranges for some in part.placement.kept}
        assert kept.keys() <= {1}, "rows are looked up by the parent's ids"
        rows, columns = stored.shape
        self.shape = (part.shape[0], part.shape[1])
        self.dtype = DTYPES[stored.dtype]
        item = ITEM_BYTES[stored.dtype]
        self.kept_bytes = [
            slice(some.start * item, some.stop * item) for some in kept.get(1, (range(columns),))
        ]  # fmt: skip
        first_page = stored.start - stored.start % mmap.ALLOCATIONGRANULARITY
        skipped = stored.start - first_page
        try:
            with stored.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < stored.start + stored.nbytes:
                    raise CheckpointError(
                        f"{stored.path}: ends within '{stored.name}'; it was changed while it was read"
                    )
                # Copied on writing, which nobody does: torch takes no memory that it must not write to.
                mapping = mmap.mmap(
                    file.fileno(), skipped + stored.nbytes, access=mmap.ACCESS_COPY, offset=first_page
                )  # fmt: skip
        except OSError as error:
            raise CheckpointError(
                f"{stored.path}: cannot map '{stored.name}' into memory ({error.strerror}); set"
                " trainer.per_layer_table=host, or put the checkpoint on a disk of this machine"
            ) from None
        mapping.madvise(mmap.MADV_RANDOM)  # neighbours of a row are no likelier to be needed than others
        # Bytes, not numbers: where a tensor begins in its file is no multiple of anything.
        self.bytes = torch.frombuffer(mapping, dtype=torch.uint8, count=stored.nbytes, offset=skipped).view(rows, -1)

    def read(self, ids: Int[Tensor, " ids"], into: Float[Tensor, "ids columns"]) -> None:
        """Put the rows of these ids, in their order, into a tensor on the CPU, in its dtype."""
        found = self.bytes.index_select(0, ids)
        if found.shape[1] != sum(some.stop - some.start for some in self.kept_bytes):
            found = torch.cat([found[:, some] for some in self.kept_bytes], dim=1)
        into.copy_(found.view(self.dtype))
