# SPDX-License-Identifier: Apache-2.0
"""Whose memory it is: tensors that are made and dropped while a step of training is pretended."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.heap import Heap, Piece

INDEXED = {"aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Part(StrEnum):
    """What memory is taken for."""

    weights = "weights"  # frozen ones
    table = "per-layer table"  # where it is not among the weights
    trained = "trained weights"
    gradients = "gradients"
    states = "optimizer states"
    average = "average"
    batch = "batch"
    activations = "activations"  # all that the forward pass makes, until it is dropped
    loss = "loss"
    work = "work"  # what comes and goes in the backward pass and the optimizer's step; recomputed activations, too
    free = "freed, not given back"  # by a processor's allocator


class Ledger(TorchDispatchMode):
    """Counts every tensor's memory from the operation that makes it until it is gone, and the most there was at once.

    For fake tensors, which have shapes alone. Where an operation depends on values, all conditions are taken to hold:
    every position has a label, every id is one of the vocabulary's.

    Args:
        heap: Where tensors lie, if what is freed there counts for as long as the process has it.
    """

    def __init__(self, heap: Heap | None = None) -> None:
        super().__init__()
        self.heap = heap
        self.part = Part.weights  # that new tensors belong to
        self.alive: dict[int, tuple[Part, int, Piece | None]] = {}
        self.now: Counter[Part] = Counter()
        self.peak: Counter[Part] = Counter()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run one operation and count what it made."""
        result = pretended(func, args, kwargs or {})
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self.count(made)
        return result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's memory unless it is counted already."""
        storage = tensor.untyped_storage()
        key = StorageWeakRef(storage).cdata
        if key in self.alive:
            return
        nbytes = storage.nbytes()
        self.alive[key] = (self.part, nbytes, self.heap and self.heap.take(nbytes))
        weakref.finalize(storage, self.drop, key).atexit = False
        self.now[self.part] += nbytes
        if self.taken > self.peak.total():
            self.peak = self.now.copy()
            self.peak[Part.free] = self.taken - self.now.total()

    @property
    def taken(self) -> int:
        """Bytes that cannot be had by others: those of tensors, and of a processor also what waits for the next."""
        return self.now.total() if self.heap is None else self.heap.taken

    def drop(self, key: int) -> None:
        """A tensor's memory is free."""
        part, nbytes, piece = self.alive.pop(key)
        self.now[part] -= nbytes
        if self.heap is not None and piece is not None:
            self.heap.give(piece)

    def belongs(self, tensor: Tensor, part: Part) -> None:
        """Count a tensor's memory among another part's."""
        key = StorageWeakRef(tensor.untyped_storage()).cdata
        before, nbytes, piece = self.alive[key]
        self.alive[key] = (part, nbytes, piece)
        self.now[before] -= nbytes
        self.now[part] += nbytes

    @contextmanager
    def making(self, part: Part) -> Iterator[None]:
        """Count what is made in the block among this part's."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def watch_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Count finished gradients as such."""
        for parameter in parameters.values():
            parameter.register_post_accumulate_grad_hook(self.take_gradient)

    def take_gradient(self, parameter: Tensor) -> None:
        """The gradient of a parameter is there."""
        if parameter.grad is not None:
            self.belongs(parameter.grad, Part.gradients)


def pretended(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operation gives; where that is a matter of values, as if all were true, or one."""
    name = func.name()
    if name == "aten::_local_scalar_dense":
        return {torch.bool: False, torch.int64: 1, torch.int32: 1}.get(args[0].dtype, 1.0)
    if name in INDEXED:
        return func(args[0], everywhere(args[1]), *args[2:], **kwargs)
    return func(*args, **kwargs)


def everywhere(indices: Any) -> list[Tensor | None]:
    """Indices with each mask in them as places: as if it held everywhere."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype is not torch.bool:
            found.append(index)
        else:
            found.extend(torch.empty(index.numel(), dtype=torch.int64, device=index.device) for _ in index.shape)
    return found
