# SPDX-License-Identifier: Apache-2.0
"""The text decoder: a loop over the kept layers of a spec, handing keys and values on as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import TextConfig
from model.errors import InputError
from model.inputs import Inputs
from model.layers.altup import collapse, expand
from model.layers.embedding import HostTable, RowSource, ScaledEmbedding
from model.layers.kernel import AttentionKernel
from model.layers.kv_cache import KeyValues, KVCache
from model.layers.norm import RMSNorm
from model.recompute import RecomputeConfig, TextRecompute, partly_recomputed, recomputed
from model.slicing.spec import SliceSpec
from model.text.context import Context, contexts_of
from model.text.layer import DecoderLayer
from model.text.tree import Point, Step, tree_of, walk

Produced = Mapping[int, KeyValues]  # by the layer that made them


@dataclass(frozen=True)
class LayerRun:
    """What one kept layer is run with, beside the streams and other layers' keys and values."""

    index: int  # in the parent
    width: int
    per_layer_input: Float[Tensor, "batch seq ple"]
    context: Context
    past: KeyValues | None


class Decoder(nn.Module):
    """Embedded tokens to hidden states, as any sub-model of itself.

    ``recompute`` trades time for memory: which of the layers' activations are not kept for the backward pass but
    made again in it. As streams are four times as wide as a hidden state, so is what lies between two layers: with
    ``text=every`` it is kept between groups of layers only.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = RecomputeConfig()
        self.attention = AttentionKernel.auto  # what computes it, where nothing is decoded step by step
        dim, ple, layers = config.hidden_size, config.hidden_size_per_layer_input, config.num_hidden_layers
        pad = config.pad_token_id
        self.embed_tokens = ScaledEmbedding(config.vocab_size, dim, padding_row=pad, scale=dim**0.5)
        self.embed_tokens_per_layer: nn.Module = ScaledEmbedding(
            config.vocab_size_per_layer_input, layers * ple, padding_row=pad, scale=ple**0.5
        )
        self.per_layer_model_projection = nn.Linear(dim, layers * ple, bias=False)
        self.per_layer_projection_norm = RMSNorm(ple, config.rms_norm_eps)
        others = config.altup_num_inputs - 1
        self.altup_projections = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(others))
        self.altup_unembed_projections = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(others))
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(layers))
        self.norm = RMSNorm(dim, config.rms_norm_eps)

    def forward(
        self, embedded: Float[Tensor, "batch seq dim"], inputs: Inputs, spec: SliceSpec, cache: KVCache | None = None
    ) -> tuple[Float[Tensor, "batch seq dim"], KVCache | None]:
        """Hidden states after the final norm, computed by the sub-model ``spec``.

        Args:
            embedded: What stands at each token: its row of ``embed_tokens``, or a soft token.
            inputs: The tokens' ids and mask; with a cache, of those that follow the ones seen so far.
            spec: The layers and widths to compute with, checked against this decoder's config.
            cache: Keys and values of earlier tokens; the next cache is given back only if there is one.
        """
        per_layer = self.per_layer_inputs(inputs, embedded, spec.kept_layers).unbind(dim=2)
        seen = inputs.mask if cache is None else torch.cat((cache.mask, inputs.mask), dim=1)
        attention = self.attention if cache is None else AttentionKernel.dense
        contexts = contexts_of(self.config, inputs, seen, embedded.dtype, attention)

        streams = expand(embedded, self.altup_projections)
        produced: dict[int, KeyValues] = {}
        runs = [
            LayerRun(
                index, width, own_input, contexts[self.config.layer_types[index]],
                past=cache.layers.get(index) if cache else None,
            )
            for index, width, own_input in zip(spec.kept_layers, spec.ffn_widths, per_layer, strict=True)
        ]  # fmt: skip
        for group in grouped(runs, self.recompute.group):
            streams, made = self.run_group(group, streams, produced)
            produced |= made
        hidden = self.norm(collapse(streams, self.altup_unembed_projections))
        return hidden, None if cache is None else KVCache(produced, seen)

    def run_group(
        self, group: Sequence[LayerRun], streams: Float[Tensor, "batch seq streams dim"], produced: Produced
    ) -> tuple[Float[Tensor, "batch seq streams dim"], Produced]:
        """Neighbouring layers, their activations kept or made again in the backward pass.

        Keys and values come in and go out as values: made again, a reader's are those of the producer's first run,
        whose gradient they lead to.
        """
        readers = {self.config.kv_producer(run.index) for run in group}
        arguments = (group, streams, {producer: produced[producer] for producer in readers if producer in produced})
        policy = self.recompute.text if torch.is_grad_enabled() else TextRecompute.none
        match policy:
            case TextRecompute.none:
                return self.run_layers(*arguments)
            case TextRecompute.full | TextRecompute.every:
                return recomputed(self.run_layers, *arguments)
            case TextRecompute.selective:
                return partly_recomputed(self.run_layers, *arguments, dear=self.config.hidden_size)

    def run_layers(
        self, group: Sequence[LayerRun], streams: Float[Tensor, "batch seq streams dim"], produced: Produced
    ) -> tuple[Float[Tensor, "batch seq streams dim"], Produced]:
        """Neighbouring layers one after the other: the streams after them, and the keys and values they used."""
        used = dict(produced)
        for run in group:
            producer = self.config.kv_producer(run.index)
            streams, used[producer] = self.layers[run.index](
                streams, run.per_layer_input, run.context, run.width, shared=used.get(producer), past=run.past
            )
        return streams, used

    def forward_each(
        self,
        embedded: Float[Tensor, "batch seq dim"],
        inputs: Inputs,
        specs: Sequence[SliceSpec],
        *,
        kept_bytes: int,
        cached: bool,
    ) -> Iterator[tuple[int, Float[Tensor, "batch seq dim"], KVCache | None]]:
        """Hidden states of each of several sub-models, with its number, as ``forward`` gives them to the last bit.

        Layers that sub-models begin with alike are run once for all; see ``model/text/tree.py``. For measuring.

        Args:
            embedded, inputs: As of ``forward``.
            specs: The sub-models, checked; the first comes first, unless another ends where it goes on.
            kept_bytes: About how much may be kept between layers for sub-models whose turn is to come.
            cached: Whether to give each one's cache too, as ``forward`` does where it begins with an empty one.
        """
        layers = sorted({layer for spec in specs for layer in spec.kept_layers})
        attention = AttentionKernel.dense if cached else self.attention
        with torch.no_grad():  # never around a yield, where it would reach the caller
            per_layer = dict(zip(layers, self.per_layer_inputs(inputs, embedded, layers).unbind(dim=2), strict=True))
            contexts = contexts_of(self.config, inputs, inputs.mask, embedded.dtype, attention)
            start = Point(expand(embedded, self.altup_projections), {})

        @torch.no_grad()
        def run(steps: Sequence[Step], point: Point) -> Point:
            runs = [
                LayerRun(index, width, per_layer[index], contexts[self.config.layer_types[index]], past=None)
                for index, width in steps
            ]
            return Point(*self.run_layers(runs, point.streams, point.produced))

        tree = tree_of(specs, self.config, at_end=frozenset(layers if cached else ()))
        for number, point in walk(tree, start, run, kept_bytes=kept_bytes):
            with torch.no_grad():
                hidden = self.norm(collapse(point.streams, self.altup_unembed_projections))
            yield number, hidden, KVCache(dict(point.produced), inputs.mask) if cached else None
            del point, hidden  # not to be in memory while the next sub-model is run

    def per_layer_inputs(
        self, inputs: Inputs, embedded: Float[Tensor, "batch seq dim"], kept_layers: Sequence[int]
    ) -> Float[Tensor, "batch seq layers ple"]:
        """What each of these layers is told about each token: its block of the token's row, and a projection of it.

        Ids beyond the table (soft tokens) read row 0, as in the reference.
        """
        config = self.config
        blocks = (config.num_hidden_layers, config.hidden_size_per_layer_input)
        rows = self.table_rows(inputs).unflatten(-1, blocks)
        scale, share = (
            torch.tensor(value, dtype=embedded.dtype, device=embedded.device)  # rounded like the reference's
            for value in (config.hidden_size**-0.5, 2**-0.5)
        )
        projected = (self.per_layer_model_projection(embedded) * scale).unflatten(-1, blocks)
        if len(kept_layers) < config.num_hidden_layers:
            kept = torch.tensor(kept_layers, device=embedded.device)
            rows, projected = rows.index_select(2, kept), projected.index_select(2, kept)
        return (self.per_layer_projection_norm(projected) + rows) * share

    def table_rows(self, inputs: Inputs) -> Float[Tensor, "batch seq columns"]:
        """The rows of the per-layer table at each token; those gathered before, if they have been."""
        table, gathered = self.embed_tokens_per_layer, inputs.per_layer_rows
        if isinstance(table, HostTable):
            return table(inputs.ids, gathered)
        if gathered is not None:
            raise InputError(
                "inputs: rows of the per-layer table were gathered, but this model has the table on its device;"
                " leave per_layer_rows out"
            )
        in_table = inputs.ids < self.config.vocab_size_per_layer_input
        return table(torch.where(in_table, inputs.ids, 0))

    def leave_table_at(self, source: RowSource, *, dtype: torch.dtype, pinned: bool) -> None:
        """Look the per-layer table up where it lies from now on; it is no longer a parameter."""
        scale = self.config.hidden_size_per_layer_input**0.5
        self.embed_tokens_per_layer = HostTable(source, dtype=dtype, scale=scale, pinned=pinned)

    def compile_layers(self) -> None:
        """Let torch compile the layers' regions, each when it is first run; see ``model/text/regions.py``."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.compiled = True


def grouped(runs: Sequence[LayerRun], size: int) -> Iterator[Sequence[LayerRun]]:
    """Neighbours in groups of ``size``; the last may be smaller."""
    for first in range(0, len(runs), size):
        yield runs[first : first + size]
