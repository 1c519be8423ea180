# SPDX-License-Identifier: Apache-2.0
"""The losses of all sub-models of the study, measured side by side, and kept in a file as far as they are known.

Sub-models share the layers that they begin with, as in ``Gemma3n.hidden_of_each``. Besides, what a layer does up to its
attention is done once for all its widths, and torch may compile what comes behind the last attention, which is most of
the work: together that takes less than half the time.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from rich.console import Console
from torch import Tensor

from model.errors import InputError
from model.gemma3n import Gemma3n
from model.layers.altup import collapse, expand
from model.layers.kv_cache import KeyValues
from model.slicing.spec import SliceSpec
from model.text.context import contexts_of
from model.text.decoder import Decoder
from model.text.layer import DecoderLayer
from model.text.regions import enter_attention, leave_attention
from tests.bench.search_model import CONFIG, ROW_TOKENS, Scale, Split, rows_of, texts
from trainer.data.batch import Batch
from trainer.data.collate import Collator

ABOUT = "fingerprint"  # what a file says of its losses, beside them
LastPart = Callable[..., Tensor]  # ``row_losses``, compiled or not


@dataclass(frozen=True)
class Losses:
    """Mean losses of every spec, in the order of ``all_specs``, on each row of each split, in nats per byte."""

    rows: Mapping[Split, Float64[np.ndarray, "specs rows"]]

    def of(self, split: Split) -> Float64[np.ndarray, " specs"]:
        """Over a whole split; all rows have as many bytes."""
        return self.rows[split].mean(axis=1)

    def num_bytes(self, split: Split) -> int:
        """How many bytes a split's losses are means of."""
        return self.rows[split].shape[1] * ROW_TOKENS


def enumerated(
    model: Gemma3n, scale: Scale, path: Path, *, specs: Sequence[SliceSpec], processes: int = 1,
    console: Console | None = None,
) -> Losses:  # fmt: skip
    """The losses of all specs, from a file as far as it has them; batches that it lacks are measured and added.

    Args:
        model: Whose parts they are.
        scale: How much text each split has.
        path: The file.
        specs: All of them.
        processes: How many measure side by side, a batch each.
        console: Where progress is told.

    Raises:
        InputError: The file has losses of another model, of other sub-models or on other text.
    """
    _, held_out = texts()
    rows = {
        split: rows_of(held_out[split], count=scale.measured_rows * scale.batches[split], seed=1) for split in Split
    }
    collator = Collator(CONFIG.text.pad_token_id)
    about = np.array(fingerprint_of(model, scale, specs, held_out))
    measured: dict[str, Any] = dict(np.load(path)) if path.exists() else {ABOUT: about}
    if measured.get(ABOUT) != about:
        raise InputError(
            f"{path}: has losses of another model, other sub-models or other text; delete it, and all is measured anew"
        )
    lacking = {
        key: collator(rows[split][number * scale.measured_rows :][: scale.measured_rows])
        for split, number in in_turn(scale) if (key := f"{split}_{number}") not in measured
    }  # fmt: skip
    for key, losses, seconds in measured_by(processes, model, lacking, specs, compiled=scale.compiled):
        measured[key] = losses
        aside = path.with_suffix(".part.npz")
        np.savez(aside, **measured)
        aside.replace(path)
        if console is not None:
            console.print(f"{key}: {seconds:.0f} s for {len(specs)} specs")
    return Losses({
        split: np.concatenate([measured[f"{split}_{number}"] for number in range(scale.batches[split])], axis=1)
        for split in Split
    })  # fmt: skip


def fingerprint_of(model: Gemma3n, scale: Scale, specs: Sequence[SliceSpec], held_out: Mapping[Split, bytes]) -> str:
    """A hash of all that the losses of a batch follow from; how many batches there are is nothing to them."""
    digest = hashlib.sha256(repr((scale.measured_rows, [spec.shape for spec in specs])).encode())
    for text in held_out.values():
        digest.update(text)
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def in_turn(scale: Scale) -> Iterator[tuple[Split, int]]:
    """The batches of all splits, spread over each other, so that whatever is there at some time is balanced."""
    places = [
        ((number + 0.5) / count, split, number) for split, count in scale.batches.items() for number in range(count)
    ]
    for _, split, number in sorted(places):
        yield split, number


Measured = tuple[str, Float64[np.ndarray, "specs rows"], float]


def measured_by(
    processes: int, model: Gemma3n, batches: Mapping[str, Batch], specs: Sequence[SliceSpec], *, compiled: bool
) -> Iterator[Measured]:
    """The losses of each batch and how long they took, in whatever order they are ready."""
    if processes == 1:
        for key, batch in batches.items():
            yield timed(model, key, batch, specs, compiled=compiled)
        return
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = [pool.submit(timed, model, key, batch, specs, compiled=compiled) for key, batch in batches.items()]
        for ready in as_completed(waiting):
            yield ready.result()


def timed(model: Gemma3n, key: str, batch: Batch, specs: Sequence[SliceSpec], *, compiled: bool) -> Measured:
    """The losses of one batch and how long they took."""
    begun = time.perf_counter()
    losses = losses_of(model, batch, specs, compiled=compiled)
    return key, losses, time.perf_counter() - begun


@torch.no_grad()
def losses_of(
    model: Gemma3n, batch: Batch, specs: Sequence[SliceSpec], *, compiled: bool
) -> Float64[np.ndarray, "specs rows"]:
    """The mean loss of each row of a batch under each spec, of which all keep all layers."""
    last_part: LastPart = torch.compile(row_losses, dynamic=False) if compiled else row_losses
    decoder, head = model.model.language_model, model.head_weight
    inputs = model.ready(batch.inputs)
    embedded = model.model.embed(inputs)
    last = CONFIG.text.num_hidden_layers - 1
    own = decoder.per_layer_inputs(inputs, embedded, range(last + 1)).unbind(dim=2)
    contexts = contexts_of(CONFIG.text, inputs, inputs.mask, embedded.dtype, decoder.attention)
    found = np.zeros((len(specs), len(batch.labels)))

    def go_on(members: Sequence[int], index: int, streams: Tensor, produced: Mapping[int, KeyValues]) -> None:
        layer, context = decoder.layers[index], contexts[CONFIG.text.layer_types[index]]
        assert isinstance(layer, DecoderLayer)
        shared = produced.get(producer := CONFIG.text.kv_producer(index))
        predicted, normed, queries, made = enter_attention(layer, streams, context.rotary, produces=shared is None)
        if shared is None:
            assert made is not None
            shared = KeyValues(*made)
        attended = context.kernel(queries, shared.keys, shared.values).transpose(1, 2)
        for width, alike in by_width(specs, members, index).items():
            arguments = (layer, predicted, normed, attended, own[index], width)
            if index < last:
                go_on(alike, index + 1, leave_attention(*arguments), {**produced, producer: shared})
            else:
                found[alike] = last_part(decoder, head, batch.labels, *arguments).double().numpy()

    go_on(range(len(specs)), 0, expand(embedded, decoder.altup_projections), {})
    return found


def by_width(specs: Sequence[SliceSpec], members: Sequence[int], index: int) -> dict[int, list[int]]:
    """Specs, by number, that have the same width in a layer."""
    found: dict[int, list[int]] = {}
    for number in members:
        found.setdefault(specs[number].ffn_widths[index], []).append(number)
    return found


def row_losses(
    decoder: Decoder, head: Float[Tensor, "vocab dim"], labels: Int[Tensor, "batch seq"], *of_last_layer: object
) -> Float[Tensor, " batch"]:
    """What is left to do behind the last layer's attention: the mean loss of each row.

    The soft-cap holds scores so low that their exponentials need no shift.
    """
    streams = leave_attention(*of_last_layer)  # pyright: ignore[reportArgumentType]
    hidden = decoder.norm(collapse(streams, decoder.altup_unembed_projections))
    cap = CONFIG.text.final_logit_softcapping
    scores = torch.tanh(F.linear(hidden, head) / cap) * cap
    right = scores.gather(2, labels[..., None])[..., 0]
    return (scores.exp().sum(dim=-1).log() - right).mean(dim=1)
