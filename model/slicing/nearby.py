# SPDX-License-Identifier: Apache-2.0
"""Sub-models like a given one that more runtimes may run: one width for all, layers in the usual pattern.

Which of them a runtime does run is for ``model/slicing/runtimes.py`` to say. For runtimes that count
layers, the fewest changes are found exactly: parent layers are gone through once, and for every number
of layers kept so far the cheapest choice is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from model.config import TextConfig
from model.slicing.count import layer_shapes
from model.slicing.runtime_needs import OWN_KV_LAYERS, kind_at, sparsity_at
from model.slicing.spec import SliceSpec


def candidates(spec: SliceSpec, config: TextConfig) -> Iterator[SliceSpec]:
    """Legal sub-models in the neighbourhood of ``spec``, in no order; the spec itself may be among them."""
    kept_sets = (spec.kept_layers, with_producers(spec, config))
    widest = max(spec.ffn_widths)
    asked = dict(zip(spec.kept_layers, spec.ffn_widths, strict=True))
    yield SliceSpec(
        spec.name,
        kept_sets[1],
        tuple(asked.get(layer, min(widest, config.intermediate_size[layer])) for layer in kept_sets[1]),
    )
    for width in widths_near(spec, config):
        for kept in (*kept_sets, *in_pattern(spec, config, width)):
            if all(config.intermediate_size[layer] >= width for layer in kept):
                yield SliceSpec(spec.name, kept, (width,) * len(kept))


def widths_near(spec: SliceSpec, config: TextConfig) -> list[int]:
    """The spec's widths, the parent's, and half of these, which is how Gemma 3n was trained."""
    parents = set(config.intermediate_size)
    return sorted(set(spec.ffn_widths) | parents | {width // 2 for width in parents if width > 1})


def with_producers(spec: SliceSpec, config: TextConfig) -> tuple[int, ...]:
    """The kept layers, and the last of each type that makes keys and values."""
    first = config.first_shared_layer
    last = {config.layer_types[layer]: layer for layer in range(first)}
    return tuple(sorted({*spec.kept_layers, *last.values()}))


def in_pattern(spec: SliceSpec, config: TextConfig, width: int) -> list[tuple[int, ...]]:
    """For every number of layers, those in the pattern of the published models that change the least.

    Layers are of the type and the sparsity that their new place has, and the first 20 of them are those
    that make keys and values. Producers of the parent stay.
    """
    asked = dict(zip(spec.kept_layers, spec.ffn_widths, strict=True))
    sizes, readers = layer_sizes(config), range(config.first_shared_layer, config.num_hidden_layers)
    producers = {config.kv_producer(reader) for reader in readers}
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for layer in range(config.num_hidden_layers):
        skipping, taking = (sizes.difference(layer, asked.get(layer), one) for one in (None, width))
        following: dict[int, tuple[int, tuple[int, ...]]] = {}
        for count, (cost, kept) in best.items():
            options = [] if layer in producers else [(count, (cost + skipping, kept))]
            if fits(config, layer, count, width):
                options.append((count + 1, (cost + taking, (*kept, layer))))
            for place, option in options:
                following[place] = min(following.get(place, option), option)
        best = following
    return [kept for count, (_, kept) in best.items() if count >= OWN_KV_LAYERS]


def fits(config: TextConfig, layer: int, position: int, width: int) -> bool:
    """Whether a layer can stand at this place of a sub-model in the pattern of the published ones."""
    return (
        config.layer_types[layer] is kind_at(position)
        and config.activation_sparsity_pattern[layer] == sparsity_at(position)
        and (layer < config.first_shared_layer) == (position < OWN_KV_LAYERS)
        and width <= config.intermediate_size[layer]
    )


def change(spec: SliceSpec, other: SliceSpec, config: TextConfig) -> tuple[int, int, int]:
    """How far ``other`` is from ``spec``: parameters and layers that only one of them has; then its size."""
    sizes = layer_sizes(config)
    left, right = (dict(zip(one.kept_layers, one.ffn_widths, strict=True)) for one in (spec, other))
    layers = left.keys() | right.keys()
    return (
        sum(sizes.difference(layer, left.get(layer), right.get(layer)) for layer in layers),
        len(left.keys() ^ right.keys()),
        sum(sizes.of(layer, width) for layer, width in right.items()),
    )


@dataclass(frozen=True)
class LayerSizes:
    """Parameters of each layer without its feed-forward network, and those of one neuron."""

    fixed: tuple[int, ...]
    neuron: int

    def of(self, layer: int, width: int | None) -> int:
        """Parameters that a layer of this width costs; a width of None is no such layer."""
        return 0 if width is None else self.fixed[layer] + self.neuron * width

    def difference(self, layer: int, left: int | None, right: int | None) -> int:
        """Parameters of one layer that only one of two sub-models has."""
        return abs(self.of(layer, left) - self.of(layer, right))


@cache  # for one parent, many sub-models are compared
def layer_sizes(config: TextConfig) -> LayerSizes:
    """What layers cost, their rows and columns of the per-layer tables included."""
    neuron = FFN_MATRICES * config.hidden_size
    tables = config.hidden_size_per_layer_input * (config.vocab_size_per_layer_input + config.hidden_size)
    fixed = (
        sum(math.prod(shape) for shape in layer_shapes(config, layer).values()) - neuron * width + tables
        for layer, width in enumerate(config.intermediate_size)
    )
    return LayerSizes(tuple(fixed), neuron)


FFN_MATRICES = 3  # gate, up and down, each with one row or column per neuron
