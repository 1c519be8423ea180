# SPDX-License-Identifier: Apache-2.0
"""A training run from its beginning to its end in two steps, on tensors that have a shape and no memory.

Model, adapter, optimizer, average and loss are the real ones; every tensor that an operation would make is counted for
as long as it would live. So whatever changes what is kept, be it an optimizer or a kernel, is counted without a formula
of its own that could be wrong. The phases are those of ``trainer/loop.py``: measuring, steps, measuring, saving.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.adapter.lora import PeftModel, attach, base_of
from model.freezing import freeze
from model.gemma3n import Gemma3n, learns, side_by_side
from model.inputs import Images, Inputs, SoftTokens
from model.layers.embedding import TablePlacement, TableRows
from model.slicing.spec import SliceSpec
from trainer.allocator import is_plain_glibc
from trainer.average import Average
from trainer.heap import Heap
from trainer.ledger import Ledger, Part
from trainer.loss import linear_cross_entropy_sum, token_scores
from trainer.optim import build_optimizer, trained_of
from trainer.optimizers.config import OptimizerName
from trainer.planned import Planned

STEPS = 2  # the first has no states to begin with, the second meets the heap as the first left it
SMALL_8BIT = 4096  # entries; tensors below that keep float32 states in bitsandbytes
BLOCK_8BIT = 256  # entries that share a float32 scale there


def peak_of_run(planned: Planned, *, on_processor: bool) -> Mapping[Part, int]:
    """Bytes when the process has most, by what they are for; without a table that is off the device.

    Args:
        planned: The run.
        on_processor: Whether tensors lie in the memory of a process, which keeps some of what is freed.

    Raises:
        ConfigError: The adapter, or what is frozen, does not fit the model; or the optimizer the parameters.
    """
    ledger = Ledger(Heap() if on_processor and is_plain_glibc() else None)
    model = built(planned)
    # Generators and the like are real; they are left as they are.
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        place(model, ledger)
        Rehearsal.of(planned, model, ledger).run()
    return {part: nbytes for part, nbytes in ledger.peak.items() if nbytes}


@dataclass(frozen=True)
class ShapeOfTable:
    """A table of which nothing but its size is known."""

    shape: tuple[int, int]

    def read(self, ids: Int[Tensor, " ids"], into: Float[Tensor, "ids columns"]) -> None:
        """It holds anything."""


def built(planned: Planned) -> Gemma3n | PeftModel:
    """The model as it is trained, on the meta device. A table off the device is counted elsewhere."""
    trainer = planned.trainer
    aside = None if trainer.per_layer_table is TablePlacement.device else ShapeOfTable(planned.table_shape)
    gemma = Gemma3n.build(planned.config, device="meta", dtype=trainer.precision.dtype, per_layer_rows=aside)
    gemma.recompute = trainer.recompute
    gemma.attention = trainer.attention
    gemma.train()
    if planned.adapter is None:
        freeze(gemma, planned.freeze, planned.freeze_matching)
        return gemma
    return attach(gemma, planned.adapter)


def place(model: nn.Module, ledger: Ledger) -> None:
    """Give every parameter and buffer a pretended place in memory."""
    moved: dict[int, nn.Parameter] = {}  # where two modules have the same one, they go on to
    for module in model.modules():
        for name, own in module.named_parameters(recurse=False):
            if id(own) not in moved:
                with ledger.making(Part.trained if own.requires_grad else Part.weights):
                    moved[id(own)] = nn.Parameter(torch.empty_like(own, device="cpu"), requires_grad=own.requires_grad)
            module.register_parameter(name, moved[id(own)])
        for name, own in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty_like(own, device="cpu"))


@dataclass(frozen=True, kw_only=True)
class Pretended:
    """A micro-batch."""

    inputs: Inputs
    labels: Int[Tensor, "batch seq"]
    pixels: Float[Tensor, "images 3 height width_px"] | None
    frames: Float[Tensor, "clips frames mels"] | None


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A run on a model whose tensors are counted."""

    planned: Planned
    model: Gemma3n | PeftModel
    ledger: Ledger
    trained: Mapping[str, nn.Parameter]
    average: Average | None
    move: Callable[[], object]

    @classmethod
    def of(cls, planned: Planned, model: Gemma3n | PeftModel, ledger: Ledger) -> Rehearsal:
        """Before its beginning."""
        trained = trained_of(model)
        ledger.watch_gradients(trained)
        with ledger.making(Part.average):
            config = planned.trainer.average
            average = None if config.decay is None else Average(trained, config)
        return cls(
            planned=planned, model=model, ledger=ledger, trained=trained, average=average,
            move=mover(planned, model, trained),
        )  # fmt: skip

    def run(self) -> None:
        """All phases, in the order of a run."""
        planned, trainer = self.planned, self.planned.trainer
        if planned.is_measured and trainer.eval_before:
            self.measure()
        # Threads make batches ahead while a step has its own.
        waiting = [self.batch(trainer.batch_size, planned.lengths) for _ in range(planned.workers)]
        for number in range(1, STEPS + 1):
            self.step(number)
        del waiting
        if planned.is_measured:
            self.measure()
        self.save()

    @property
    def gemma(self) -> Gemma3n:
        """The model itself."""
        return base_of(self.model)

    @property
    def specs(self) -> Sequence[SliceSpec]:
        """The sub-models of a step."""
        return self.planned.specs or (SliceSpec.full(self.planned.config.text),)

    def step(self, number: int) -> None:
        """All micro-batches wait from the start. Two are gone through: the first has no gradients to add to."""
        planned, trainer = self.planned, self.planned.trainer
        batches = [self.batch(trainer.batch_size, planned.lengths) for _ in range(trainer.gradient_accumulation)]
        for batch in batches[:2]:
            self.micro_batch(batch)
        with self.ledger.making(Part.work):
            clip(self.trained, trainer.max_grad_norm)
            with self.ledger.making(Part.states if number == 1 else Part.work):  # they begin to be with the first step
                self.move()
            for parameter in self.trained.values():
                parameter.grad = None
            if self.average is not None:
                self.average.update(number * trainer.average.every)

    def micro_batch(self, batch: Pretended) -> None:
        """All sub-models on one micro-batch, whose media frozen towers take in once."""
        frozen = self.soft_tokens(batch, learning=False)
        for spec in self.specs:
            self.forward_and_back(batch, frozen, spec)

    def forward_and_back(self, batch: Pretended, frozen: Mapping[str, SoftTokens], spec: SliceSpec) -> None:
        """One sub-model on one micro-batch, with a label at every token."""
        softcap = self.planned.config.text.final_logit_softcapping
        with self.ledger.making(Part.activations):
            hidden = self.hidden(batch, {**frozen, **self.soft_tokens(batch, learning=True)}, spec)
        with self.ledger.making(Part.loss):
            loss = linear_cross_entropy_sum(
                hidden, self.gemma.head_weight, batch.labels, softcap=softcap,
                chunk_bytes=self.planned.trainer.loss_chunk_bytes,
            )  # fmt: skip
        del hidden
        with self.ledger.making(Part.work):
            loss.backward()

    def hidden(
        self, batch: Pretended, soft: Mapping[str, SoftTokens], spec: SliceSpec
    ) -> Float[Tensor, "batch seq dim"]:
        """What ``Gemma3n.hidden`` gives, without its looks at ids: these hold anything."""
        inputs = batch.inputs
        full = dataclasses.replace(inputs, images=soft.get("images"), audio=soft.get("audio"))
        return self.gemma.model.language_model(self.gemma.model.embed(full), full, spec, None)[0]

    def soft_tokens(self, batch: Pretended, *, learning: bool) -> dict[str, SoftTokens]:
        """What towers make of a batch's media: those that learn, or the others, one item at a time."""
        towers, soft = self.gemma.model, {}
        with self.ledger.making(Part.activations):
            if batch.pixels is not None and (tower := towers.vision_tower) and learns(tower) is learning:
                soft["images"] = towers.see(Images(pixels=batch.pixels))
            if batch.frames is not None and (tower := towers.audio_tower) and learns(tower) is learning:
                soft["audio"] = self.hear(batch.frames, learning=learning)
        return soft

    def hear(self, frames: Float[Tensor, "clips frames mels"], *, learning: bool) -> SoftTokens:
        """As ``Towers.hear``, of clips that are all as long."""
        tower = self.gemma.model.audio_tower
        assert tower is not None
        real = torch.ones(frames.shape[:2], dtype=torch.bool)
        if learning:
            return tower(frames, real)
        with torch.no_grad():
            return side_by_side([tower(*clip) for clip in zip(frames.split(1), real.split(1), strict=True)])

    def batch(self, rows: int, lengths: tuple[int, ...]) -> Pretended:
        """A micro-batch of rows of examples of these lengths, with rows of a table that is not on the device."""
        planned, config = self.planned, self.planned.config
        shape, table, gathered = (rows, sum(lengths)), self.gemma.per_layer_table, None
        with self.ledger.making(Part.batch):
            ids, labels = (torch.empty(shape, dtype=torch.int64) for _ in range(2))
            if table is not None:
                entries, columns = table.source.shape
                distinct = torch.empty(min(entries, ids.numel()), columns, dtype=table.dtype)
                gathered = TableRows(distinct, torch.empty_like(ids))
            has_media = bool(planned.images or planned.clips)
            inputs = Inputs(
                ids=ids, mask=torch.empty(shape, dtype=torch.bool), document_lengths=(lengths,) * rows,
                ids_below=None if has_media else config.text.vocab_size_per_layer_input,
                documents=None if len(lengths) == 1 else torch.empty_like(ids), per_layer_rows=gathered,
            )  # fmt: skip
            pixels = torch.empty(rows * planned.images, 3, *planned.picture_px) if planned.images else None
            frames = None
            if planned.clips and config.audio is not None:
                frames = torch.empty(rows * planned.clips, config.audio.max_frames, config.audio.input_feat_size)
        return Pretended(inputs=inputs, labels=labels, pixels=pixels, frames=frames)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the weights that are measured and saved."""
        with self.ledger.making(Part.work), contextlib.ExitStack() as stack:
            if self.average is not None:
                stack.enter_context(self.average.applied())
            yield

    @torch.no_grad()
    def measure(self) -> None:
        """One batch of rows of one example each, under each sub-model."""
        planned, trainer = self.planned, self.planned.trainer
        self.model.eval()
        with self.averaged():
            batch = self.batch(trainer.eval_batch_size or trainer.batch_size, (planned.document - 1,))
            soft = self.soft_tokens(batch, learning=False)
            for spec in self.specs:
                with self.ledger.making(Part.activations):
                    hidden = self.hidden(batch, soft, spec)
                with self.ledger.making(Part.loss):
                    softcap = planned.config.text.final_logit_softcapping
                    token_scores(hidden, self.gemma.head_weight, batch.labels, softcap=softcap)
        self.model.train()

    def save(self) -> None:
        """Tensors go to files as they are; of an adapter's, safetensors makes copies first."""
        with self.averaged():
            if self.planned.adapter is not None:
                copies = [torch.empty_like(parameter) for parameter in self.trained.values()]
                del copies


def mover(planned: Planned, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Callable[[], object]:
    """What an optimizer does in a step."""
    if planned.optim.name is not OptimizerName.adamw_8bit:
        return build_optimizer(model, planned.optim).step
    # It cannot run here, but says how much it keeps.
    states: list[Tensor] = []

    def step() -> None:
        if not states:
            states.extend(torch.empty(bytes_8bit(own.numel()), dtype=torch.uint8) for own in trained.values())

    return step


def bytes_8bit(entries: int) -> int:
    """What two moments of so many entries take in 8 bits, with their scales."""
    return 8 * entries if entries < SMALL_8BIT else 2 * (entries + 4 * -(-entries // BLOCK_8BIT))


def clip(trained: Mapping[str, nn.Parameter], most: float | None) -> None:
    """Measure the gradient, and scale it down."""
    found = [parameter for parameter in trained.values() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in found if parameter.grad is not None])
    if most is not None:
        nn.utils.clip_grads_with_norm_(found, most, norm)
