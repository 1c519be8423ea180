# SPDX-License-Identifier: Apache-2.0
"""How many bytes of tensors are alive: exact and repeatable, unlike what the system says of a process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOKS_EVERY = 16  # operations; a look takes as long as there are tensors alive


class LiveBytes(TorchDispatchMode):
    """Counts what operations made while it is on and what still exists; views and what was there before are free."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {address(tensor) for tensor in known}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.num_seen = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run one operation and look at what it gave."""
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and address(result) not in self.known:
                storage = result.untyped_storage()
                self.alive[address(result)] = (StorageWeakRef(storage), storage.nbytes())
        self.num_seen += 1
        if self.num_seen % LOOKS_EVERY == 0:
            self.peak = max(self.peak, self.now())
        return results

    def now(self) -> int:
        """Bytes alive at this moment."""
        self.alive = {key: found for key, found in self.alive.items() if not found[0].expired()}
        return sum(nbytes for _, nbytes in self.alive.values())


def kept_and_peak(forward: Callable[[], Tensor], *known: Tensor) -> tuple[int, int]:
    """Bytes that a forward pass leaves for the backward pass, and the most alive at any time of both.

    Args:
        forward: Gives something to go backward from.
        known: Tensors that were there before, such as weights.
    """
    with LiveBytes(*known) as live:
        result = forward()
        gc.collect()
        kept = live.now()
        result.backward()
    return kept, live.peak


def address(tensor: Tensor) -> int:
    """Of a tensor's memory."""
    return tensor.untyped_storage().data_ptr()
