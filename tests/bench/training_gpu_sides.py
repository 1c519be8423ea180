# SPDX-License-Identifier: Apache-2.0
"""Ours and the peer's on one device with the same random weights, and the same packed tokens for both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

import tests.torchvision_operators  # noqa: F401 - before transformers

# isort: split
from peft import LoraConfig, get_peft_model

from model.adapter.lora import AdapterConfig, attach
from model.config import LayerType, ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.layers.embedding import RowsInMemory, TablePlacement
from model.layers.kernel import AttentionKernel
from model.recompute import RecomputeConfig, TextRecompute
from model.slicing.spec import SliceSpec
from tests.bench.training import products
from tests.bench.training_worker import ALPHA, IGNORED, LEARNING_RATE, PROJECTIONS, RANK
from tests.parity.reference import reference_of
from trainer.loss import CHUNK_BYTES
from trainer.step import SupervisedLoss

USUAL_DOCUMENT, SPREAD, SHORTEST = 1 / 8, 0.8, 4  # of a row, of the logarithm, in tokens


class Who(StrEnum):
    """Whose step is measured."""

    ours = "ours"
    theirs = "theirs"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to take the step; what the peer has no choice of is left as it is."""

    who: Who
    recompute: TextRecompute = TextRecompute.full
    rows_at_once: int  # in a micro-batch: rows, or documents where they are padded
    padded: bool = False  # theirs: each document a row of its own, padded to the longest of its micro-batch
    attention: AttentionKernel = AttentionKernel.auto
    table: TablePlacement = TablePlacement.device
    chunk_bytes: int = CHUNK_BYTES

    @property
    def name(self) -> str:
        """What differs from the plainest."""
        said = [self.who.value, f"recompute {self.recompute}"]
        said += [f"documents padded, {self.rows_at_once} at a time" if self.padded else f"rows × {self.rows_at_once}"]
        said += [f"attention {self.attention}"] * (self.attention is not AttentionKernel.auto)
        said += ["table on host"] * (self.table is TablePlacement.host)
        said += [f"scores in {self.chunk_bytes / (1 << 20):,.0f} MiB"] * (self.chunk_bytes != CHUNK_BYTES)
        return ", ".join(said)


@dataclass(frozen=True)
class Packs:
    """Rows full of documents of varied lengths."""

    ids: Tensor  # rows, tokens
    lengths: tuple[tuple[int, ...], ...]  # of the documents of each row

    @classmethod
    def drawn(cls, text: TextConfig, rows: int, tokens: int) -> Packs:
        """Random ids of the text's vocabulary, as often as words by Zipf's law; the same for the same arguments."""
        generator, vocab = torch.Generator().manual_seed(0), text.vocab_size_per_layer_input
        ranks = torch.rand(rows, tokens, generator=generator).mul(math.log(vocab)).exp().long().clamp(1, vocab - 1)
        ids = 1 + torch.randperm(vocab - 1, generator=generator)[ranks - 1]
        return cls(ids, tuple(tuple(drawn_lengths(tokens, generator)) for _ in range(rows)))

    @property
    def inputs(self) -> Inputs:
        """As our collator makes them."""
        documents = torch.stack([
            torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in self.lengths
        ])  # fmt: skip
        return dataclasses.replace(Inputs.of(self.ids), documents=documents)

    @property
    def labels(self) -> Tensor:
        """Shifted, with none at a document's last token."""
        labels = self.ids.roll(-1, dims=1)
        for row, lengths in zip(labels, self.lengths, strict=True):
            row[torch.tensor(lengths).cumsum(0) - 1] = IGNORED
        return labels

    @property
    def documents(self) -> list[Tensor]:
        """One by one."""
        return [part for row, lengths in zip(self.ids, self.lengths, strict=True) for part in row.split(list(lengths))]

    def split(self, rows: int) -> list[Packs]:
        """Micro-batches."""
        return [
            Packs(self.ids[start : start + rows], self.lengths[start : start + rows])
            for start in range(0, len(self.ids), rows)
        ]

    def flops(self, text: TextConfig) -> float:
        """Floating-point operations of one step's products, which any implementation has to do.

        Forward, and back to the activations: the weights are frozen. Of attention, what a token sees of its own
        document. Neither activations made again nor padding nor the adapter's factors count.
        """
        pairs = sum(
            seen_pairs(length, None if kind is LayerType.full_attention else text.sliding_window)
            for kind in text.layer_types for row in self.lengths for length in row
        )  # fmt: skip
        attended = 2 * text.num_attention_heads * text.head_dim * pairs  # scores and values
        return 2 * 2.0 * self.ids.numel() * products(text) + 3 * 2.0 * attended


def drawn_lengths(tokens: int, generator: torch.Generator) -> Iterator[int]:
    """Lengths of documents that fill a row: many short ones, few long ones."""
    left = tokens
    while left:
        drawn = torch.randn((), generator=generator).mul(SPREAD).exp().item() * USUAL_DOCUMENT * tokens
        length = min(left, max(SHORTEST, int(drawn)))
        length = left if left - length < SHORTEST else length
        yield length
        left -= length


def seen_pairs(length: int, window: int | None) -> int:
    """How many pairs of tokens of a document see each other."""
    reach = length if window is None else min(length, window)
    return reach * (reach + 1) // 2 + (length - reach) * reach


class Side(Protocol):
    """What takes steps."""

    module: nn.Module

    def backward(self) -> None:
        """Make the gradients of one step, micro-batch by micro-batch."""
        ...


class Ours:
    """Our model with our adapter and loss; documents of a row do not see each other."""

    def __init__(self, model: Gemma3n, packs: Packs, setting: Setting) -> None:
        self.device = next(model.parameters()).device
        model.recompute = RecomputeConfig(text=setting.recompute)
        model.attention = setting.attention
        self.spec = SliceSpec.full(model.config.text)
        adapted = attach(model, AdapterConfig(rank=RANK, alpha=ALPHA))
        self.module: nn.Module = SupervisedLoss(adapted, chunk_bytes=setting.chunk_bytes).train()
        self.batches = [(part.inputs, part.labels) for part in packs.split(setting.rows_at_once)]
        if (table := model.per_layer_table) is not None:  # as a trainer does while the device is at the step before
            self.batches = [
                (dataclasses.replace(inputs, per_layer_rows=table.gather(inputs.ids)), labels)
                for inputs, labels in self.batches
            ]  # fmt: skip
        self.labelled = sum(int((labels != IGNORED).sum()) for _, labels in self.batches)

    def backward(self) -> None:
        """Make the gradients of one step; batches begin on the host."""
        for inputs, labels in self.batches:
            loss = self.module(inputs.to(self.device), labels.to(self.device), self.spec)
            (loss / self.labelled).backward()


class Theirs:
    """transformers with PEFT, as their guides say, attention by SDPA."""

    def __init__(self, model: Gemma3n, packs: Packs, setting: Setting) -> None:
        base: Any = peer_of(model)
        self.device = next(base.parameters()).device
        if setting.recompute is TextRecompute.full:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        self.module: nn.Module = cast(Any, get_peft_model(base, lora)).train()
        self.batches = [
            {name: tensor.to(self.device) for name, tensor in batch.items()} for batch in self.collated(packs, setting)
        ]
        self.labelled = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in self.batches)

    def collated(self, packs: Packs, setting: Setting) -> Iterator[dict[str, Tensor]]:
        """Whole rows, as if each were one document; or the documents, padded. Labels are shifted by the model."""
        if not setting.padded:
            for part in packs.split(setting.rows_at_once):
                yield {"input_ids": part.ids, "labels": part.ids}
            return
        documents = packs.documents
        for start in range(0, len(documents), setting.rows_at_once):
            chosen = documents[start : start + setting.rows_at_once]
            ids = nn.utils.rnn.pad_sequence(chosen, batch_first=True)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in chosen], batch_first=True)
            yield {"input_ids": ids, "labels": ids.masked_fill(mask == 0, IGNORED), "attention_mask": mask}

    def backward(self) -> None:
        """Make the gradients of one step."""
        total = torch.tensor(self.labelled, device=self.device)
        for batch in self.batches:
            self.module(**batch, use_cache=False, num_items_in_batch=total).loss.backward()


def random_model(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, table: TablePlacement = TablePlacement.device
) -> Gemma3n:
    """A model of weights drawn on the device: the same ones each time, whoever computes with them."""
    text, rows = config.text, None
    if table is TablePlacement.host:
        columns = text.num_hidden_layers * text.hidden_size_per_layer_input
        drawn = torch.randn(text.vocab_size_per_layer_input, columns, device=device, dtype=dtype)
        rows = RowsInMemory(drawn.mul_(text.initializer_range).cpu())
        del drawn
    model = Gemma3n.build(config, device=device, dtype=dtype, per_layer_rows=rows)
    model.initialize(seed=0)
    return model


def peer_of(model: Gemma3n) -> nn.Module:
    """The peer's model with a copy of our weights, on our device."""
    with torch.device(next(model.parameters()).device):
        return reference_of(model)


def side_of(config: ModelConfig, packs: Packs, setting: Setting, device: torch.device, dtype: torch.dtype) -> Side:
    """Ours or theirs, ready to train."""
    model = random_model(config, device, dtype, setting.table)
    return Ours(model, packs, setting) if setting.who is Who.ours else Theirs(model, packs, setting)


def optimizer_of(side: Side) -> torch.optim.Optimizer:
    """The same for both."""
    trained: Sequence[nn.Parameter] = [p for p in side.module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)


@torch.no_grad()
def loss_difference(config: ModelConfig, packs: Packs, device: torch.device, dtype: torch.dtype) -> float:
    """Relative, between ours and theirs, of the first row as one document."""
    ids = packs.ids[:1].to(device)
    model = random_model(config, device, dtype)
    hidden = model.hidden(Inputs.of(ids))[0][:, :-1]
    theirs = cast(Any, peer_of(model))(input_ids=ids, labels=ids, use_cache=False).loss.item()
    ours = nn.functional.cross_entropy(model.head(hidden).flatten(0, 1), ids[:, 1:].flatten()).item()
    return abs(ours - theirs) / abs(theirs)
