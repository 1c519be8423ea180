# SPDX-License-Identifier: Apache-2.0
"""How much memory a training run takes at its peak, part by part, and what other settings would save."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from model.adapter.lora import targets_of
from model.checkpoint.names import PER_LAYER_TABLE
from model.freezing import freeze
from model.gemma3n import Gemma3n
from model.layers.embedding import TablePlacement
from model.recompute import TextRecompute
from trainer.config import Precision
from trainer.ledger import Part
from trainer.optim import trained_of
from trainer.optimizers.config import OptimizerName
from trainer.planned import Planned
from trainer.rehearsal import peak_of_run

Shown = Callable[[Sequence[tuple[str, Planned]]], Iterable[tuple[str, Planned]]]
CUDA_CONTEXT_BYTES = 1 << 29  # what CUDA and its libraries keep on a GPU: about half a GiB


def estimate(planned: Planned, apart: Mapping[str, int], *, on_cuda: bool) -> dict[str, int]:
    """Bytes at the peak of a run, by what they are for.

    Args:
        planned: The run.
        apart: What is taken beside tensors, such as the program itself.
        on_cuda: Whether only what is on the GPU counts, or all that the process takes.
    """
    parts = parts_of(planned, on_cuda=on_cuda, with_freed=not on_cuda)
    return {**apart, **{part.value: parts[part] for part in Part if part in parts}}


def parts_of(planned: Planned, *, on_cuda: bool, with_freed: bool) -> dict[Part, int]:
    """Bytes of tensors at the peak; with those that were freed and that a processor's allocator keeps, if asked for."""
    parts = dict(peak_of_run(planned, on_processor=with_freed))
    if planned.trainer.per_layer_table is TablePlacement.host and not on_cuda:
        rows, columns = planned.table_shape
        parts[Part.table] = rows * columns * planned.trainer.precision.dtype.itemsize
    return parts


def savings(planned: Planned, *, on_cuda: bool, shown: Shown = list) -> dict[str, int]:
    """Settings that would take less memory, with the bytes that each alone would save, the most first.

    Of tensors alone: what an allocator keeps of freed ones hangs on all that was done in this process before.

    Args:
        planned: The run.
        on_cuda: Whether only what is on the GPU counts.
        shown: Gives the settings one after the other, and may show how far it is.
    """

    def total(run: Planned) -> int:
        return sum(parts_of(run, on_cuda=on_cuda, with_freed=False).values())

    now, others = total(planned), list(alternatives(planned))
    saved = {setting: now - total(other) for setting, other in shown(others)}
    return {setting: nbytes for setting, nbytes in sorted(saved.items(), key=lambda each: -each[1]) if nbytes > 0}


def alternatives(planned: Planned) -> Iterator[tuple[str, Planned]]:
    """What could be set otherwise, one thing at a time, in the words that set it."""
    trainer, optim = planned.trainer, planned.optim

    def but(**changes: Any) -> Planned:
        return dataclasses.replace(planned, trainer=dataclasses.replace(trainer, **changes))

    if trainer.batch_size > 1:
        half = trainer.batch_size // 2
        yield f"trainer.batch_size={half}", but(batch_size=half)
    if planned.adapter is not None and trainer.precision is Precision.fp32:
        yield "trainer.precision=bf16", but(precision=Precision.bf16)
    for text in (TextRecompute.selective, TextRecompute.full):
        if trainer.recompute.text is TextRecompute.none or (text, trainer.recompute.text) == (
            TextRecompute.full, TextRecompute.selective
        ):  # fmt: skip
            changed = dataclasses.replace(trainer.recompute, text=text)
            yield f"trainer.recompute.text={text}", but(recompute=changed)
    if trainer.per_layer_table is not TablePlacement.mmap and not trains_table(planned):
        for place in (TablePlacement.host, TablePlacement.mmap):
            if place is not trainer.per_layer_table:
                yield f"trainer.per_layer_table={place}", but(per_layer_table=place)
    if optim.name is OptimizerName.adamw:
        smaller = dataclasses.replace(optim, name=OptimizerName.adamw_bf16_states)
        yield f"optim={OptimizerName.adamw_bf16_states}", dataclasses.replace(planned, optim=smaller)


def trained_names(planned: Planned) -> list[str]:
    """What is trained: parameters, or modules that an adapter is put on.

    Raises:
        ConfigError: The adapter, or what is frozen, does not fit the model.
    """
    empty = Gemma3n.build(planned.config, device="meta")
    if planned.adapter is not None:
        return targets_of(empty, planned.adapter)
    freeze(empty, planned.freeze, planned.freeze_matching)
    return list(trained_of(empty))


def trains_table(planned: Planned) -> bool:
    """Whether the table of per-layer embeddings is trained, and so has to be on the device."""
    return not {PER_LAYER_TABLE, PER_LAYER_TABLE.removesuffix(".weight")}.isdisjoint(trained_names(planned))
