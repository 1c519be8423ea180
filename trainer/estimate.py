# SPDX-License-Identifier: Apache-2.0
"""How much memory a step of training takes at its peak, by pretending one.

Model, adapter, optimizer and loss are the real ones, on tensors that have a shape and no memory; every tensor that an
operation would make is counted for as long as it would live. So whatever changes what a step keeps, be it an optimizer
or a kernel, is counted without a formula of its own that could be wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.adapter.config import AdapterConfig
from model.adapter.lora import PeftModel, attach, base_of, targets_of
from model.checkpoint.names import PER_LAYER_TABLE
from model.config import ModelConfig
from model.freezing import Part as Frozen
from model.freezing import freeze
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.layers.embedding import TablePlacement, TableRows
from model.recompute import TextRecompute
from trainer.average import Average
from trainer.config import Precision, TrainerConfig
from trainer.ledger import Ledger, Part
from trainer.loss import linear_cross_entropy_sum
from trainer.optim import build_optimizer, trained_of
from trainer.optimizers.config import OptimConfig, OptimizerName

CUDA_CONTEXT_BYTES = 1 << 29  # what CUDA and its libraries keep on a GPU: about half a GiB
# Of glibc's environment: large pieces go back to the system when they are freed. By default, those of up to 32 MiB wait
# for the next one that fits, and a process comes to take more than it has in use.
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
SMALL_8BIT = 4096  # entries; tensors below that keep float32 states in bitsandbytes
BLOCK_8BIT = 256  # entries that share a float32 scale there


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is to be trained, and how much at once.

    Args:
        width: Tokens of a row.
        document: Tokens of each example in it; the last one may be shorter.
        workers: Threads that make batches ahead, of one each.
    """

    config: ModelConfig
    adapter: AdapterConfig | None
    optim: OptimConfig
    trainer: TrainerConfig
    width: int
    document: int
    workers: int = 0
    freeze: tuple[Frozen, ...] = ()
    freeze_matching: tuple[str, ...] = ()


def peak_of_step(planned: Planned) -> Mapping[Part, int]:
    """Bytes of tensors when most are alive, by what they are for; without a table that is off the device.

    Raises:
        ConfigError: The adapter, or what is frozen, does not fit the model; or the optimizer the parameters.
    """
    ledger = Ledger()
    model = built(planned)
    # Generators and the like are real; they are left as they are.
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        on_processor(model, ledger)
        trained = trained_of(model)
        ledger.watch_gradients(trained)
        with ledger.making(Part.average):
            decay = planned.trainer.average.decay
            average = None if decay is None else Average(trained, planned.trainer.average)
        with ledger.making(Part.gradients):
            for parameter in trained.values():
                parameter.grad = torch.empty_like(parameter)
        with ledger.making(Part.states):
            move = mover(planned, model, trained)
            move()  # states begin to be with the first step
        for parameter in trained.values():
            parameter.grad = None
        ledger.peak = ledger.now.copy()
        forward_and_back(planned, model, ledger)
        with ledger.making(Part.work):
            clip(trained, planned.trainer)
            move()
            if average is not None:
                average.update(planned.trainer.average.every)
    return {part: nbytes for part, nbytes in ledger.peak.items() if nbytes}


@dataclass(frozen=True)
class ShapeOfTable:
    """A table of which nothing but its size is known."""

    shape: tuple[int, int]

    def read(self, ids: Int[Tensor, " ids"], into: Float[Tensor, "ids columns"]) -> None:
        """There is nothing to read: rows are given with the batch."""
        raise AssertionError(f"{len(ids)} rows asked of a table that is a shape alone, for {tuple(into.shape)}")


def built(planned: Planned) -> Gemma3n | PeftModel:
    """The model as it is trained, on the meta device. A table off the device is counted elsewhere."""
    trainer = planned.trainer
    aside = None if trainer.per_layer_table is TablePlacement.device else ShapeOfTable(table_shape(planned.config))
    gemma = Gemma3n.build(planned.config, device="meta", dtype=trainer.precision.dtype, per_layer_rows=aside)
    gemma.recompute = trainer.recompute
    gemma.attention = trainer.attention
    gemma.train()
    if planned.adapter is None:
        freeze(gemma, planned.freeze, planned.freeze_matching)
        return gemma
    return attach(gemma, planned.adapter)


def on_processor(model: nn.Module, ledger: Ledger) -> None:
    """Give every parameter and buffer a pretended place in memory."""
    moved: dict[int, Tensor] = {}  # where two modules have the same one, they go on to
    for module in model.modules():
        for name, own in module.named_parameters(recurse=False):
            if id(own) not in moved:
                with ledger.making(Part.trained if own.requires_grad else Part.weights):
                    moved[id(own)] = nn.Parameter(torch.empty_like(own, device="cpu"), requires_grad=own.requires_grad)
            module.register_parameter(name, cast(nn.Parameter, moved[id(own)]))
        for name, own in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty_like(own, device="cpu"))


def table_shape(config: ModelConfig) -> tuple[int, int]:
    """Rows and columns of the table of per-layer embeddings."""
    text = config.text
    return text.vocab_size_per_layer_input, text.num_hidden_layers * text.hidden_size_per_layer_input


def mover(planned: Planned, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Callable[[], object]:
    """What an optimizer does in a step."""
    if planned.optim.name is not OptimizerName.adamw_8bit:
        return build_optimizer(model, planned.optim).step
    # It cannot run here, but says how much it keeps.
    states = [torch.empty(bytes_8bit(parameter.numel()), dtype=torch.uint8) for parameter in trained.values()]
    return lambda: states


def bytes_8bit(entries: int) -> int:
    """What two moments of so many entries take in 8 bits, with their scales."""
    return 8 * entries if entries < SMALL_8BIT else 2 * (entries + 4 * -(-entries // BLOCK_8BIT))


def forward_and_back(planned: Planned, model: Gemma3n | PeftModel, ledger: Ledger) -> None:
    """One micro-batch of full rows, a document each, with a label at every token."""
    gemma, trainer = base_of(model), planned.trainer
    shape = (trainer.batch_size, planned.width)
    with ledger.making(Part.batch):
        ids, labels = (torch.empty(shape, dtype=torch.int64) for _ in range(2))
        rows = None
        if gemma.per_layer_table is not None:
            entries, columns = gemma.per_layer_table.source.shape
            distinct = min(entries, ids.numel())
            rows = TableRows(torch.empty(distinct, columns, dtype=trainer.precision.dtype), torch.empty_like(ids))
        lengths = (planned.document,) * (planned.width // planned.document)
        if rest := planned.width % planned.document:
            lengths = (*lengths, rest)
        inputs = Inputs(
            ids=ids, mask=torch.empty(shape, dtype=torch.bool), ids_below=gemma.config.text.vocab_size_per_layer_input,
            documents=None if len(lengths) == 1 else torch.empty_like(ids),
            document_lengths=(lengths,) * trainer.batch_size, per_layer_rows=rows,
        )  # fmt: skip
    with ledger.making(Part.activations):
        hidden, _ = gemma.hidden(inputs)
    softcap = gemma.config.text.final_logit_softcapping
    with ledger.making(Part.loss):
        loss = linear_cross_entropy_sum(
            hidden, gemma.head_weight, labels, softcap=softcap, chunk_bytes=trainer.loss_chunk_bytes
        )
    del hidden
    with ledger.making(Part.work):
        loss.backward()


def clip(trained: Mapping[str, nn.Parameter], trainer: TrainerConfig) -> None:
    """Measure the gradient, and scale it down."""
    found = [parameter for parameter in trained.values() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in found if parameter.grad is not None])
    if trainer.max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(found, trainer.max_grad_norm, norm)


def estimate(planned: Planned, apart: Mapping[str, int], *, on_cuda: bool) -> dict[str, int]:
    """Bytes at the peak of a step, by what they are for.

    Args:
        planned: The step.
        apart: What is taken beside tensors, such as the program itself.
        on_cuda: Whether only what is on the GPU counts, or all that the process takes.
    """
    parts = dict(peak_of_step(planned))
    rows, columns = table_shape(planned.config)
    item = planned.trainer.precision.dtype.itemsize
    if planned.trainer.per_layer_table is TablePlacement.host and not on_cuda:
        parts[Part.table] = rows * columns * item
    if planned.trainer.per_layer_table is not TablePlacement.device and not on_cuda:
        tokens = planned.trainer.batch_size * planned.width
        parts[Part.batch] += planned.workers * min(tokens, rows) * columns * item
    return {**apart, **{part.value: parts[part] for part in Part if part in parts}}


def savings(planned: Planned, found: Mapping[str, int], *, on_cuda: bool) -> dict[str, int]:
    """Settings that would take less memory, with the bytes that each alone would save, the most first."""
    counted = {part.value for part in Part}
    total = sum(nbytes for part, nbytes in found.items() if part in counted)
    saved = {
        setting: total - sum(estimate(other, {}, on_cuda=on_cuda).values()) for setting, other in alternatives(planned)
    }
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
