# SPDX-License-Identifier: Apache-2.0
"""Which widths and depths of a parent were trained, and in which order they are best enlarged.

A parent's config says nothing of its training. What is known of Gemma 3n: every layer at 8192 and at 16384
neurons, and one block (layers 20 to 24 of E4B) either whole or left out. Of other shapes the same pattern is
taken for granted: the widest layer's width and half of it, and the first block of readers.

Source: Google's table of slicing configurations of Gemma 3n, of which no row narrows layers 20 to 24; the
order is that in which its rows of single layers widen.
"""

from __future__ import annotations

from collections.abc import Iterable

from model.config import LayerType, TextConfig

GEMMA_3N_DIM, GEMMA_3N_READERS = 2048, 15  # hidden_size and num_kv_shared_layers of E4B
GEMMA_3N_WIDTHS = (8192, 16384)


def trained_widths(config: TextConfig) -> tuple[int, int]:
    """The two widths that layers were trained at, smaller first."""
    if config.hidden_size == GEMMA_3N_DIM:
        return GEMMA_3N_WIDTHS
    full = max(config.intermediate_size)
    return max(full // 2, 1), full


def narrow_width(config: TextConfig, layer: int) -> int:
    """The smallest width of a layer that was trained; its own, if it has no smaller one."""
    own, (narrow, _) = config.intermediate_size[layer], trained_widths(config)
    return own if own <= narrow or layer in optional_block(config) else narrow


def optional_block(config: TextConfig) -> tuple[int, ...]:
    """The block of readers that was trained both present, at its full width, and absent; empty if there is none.

    In a slice of Gemma 3n with fewer readers than E4B it is taken to be what was left out, as in E2B.
    """
    left_out = config.hidden_size == GEMMA_3N_DIM and config.num_kv_shared_layers < GEMMA_3N_READERS
    return () if left_out else next(iter(reader_blocks(config)), ())


def producer_blocks(config: TextConfig) -> list[tuple[int, ...]]:
    """Layers with keys and values of their own, in blocks that end with a global layer."""
    return blocks(config, range(config.first_shared_layer))


def reader_blocks(config: TextConfig) -> list[tuple[int, ...]]:
    """Layers that read another's keys and values, in blocks that end with a global layer."""
    return blocks(config, range(config.first_shared_layer, config.num_hidden_layers))


def blocks(config: TextConfig, layers: Iterable[int]) -> list[tuple[int, ...]]:
    """These layers, cut behind each global one; the last block may have none."""
    found: list[tuple[int, ...]] = []
    begun: list[int] = []
    for layer in layers:
        begun.append(layer)
        if config.layer_types[layer] is LayerType.full_attention:
            found.append(tuple(begun))
            begun = []
    return [*found, tuple(begun)] if begun else found


def depths(config: TextConfig) -> list[tuple[int, ...]]:
    """The layers kept at each depth, deepest first: all, all but the optional block, then blocks less from the end.

    Producers always stay, so every depth is legal. Those behind the optional block's were never trained.
    """
    skipped: set[int] = set()
    kept = [tuple(range(config.num_hidden_layers))]
    optional = optional_block(config)
    for block in (optional, *(block for block in reversed(reader_blocks(config)) if block != optional)):
        if block:
            skipped |= set(block)
            kept.append(tuple(layer for layer in kept[0] if layer not in skipped))
    return kept


def widening_order(config: TextConfig) -> list[tuple[int, ...]]:
    """Groups of layers, of which each is widened only when those before it are.

    Global layers come first, from the input on. The others follow block by block, outwards from where keys
    and values begin to be read, blocks of readers one and a half behind those of producers; the first block is
    last. In E4B: 4, 9, 14, 19, 29, 34, then the rest of 15-19, 10-14, 25-29, 5-9, 30-34 and 0-4.
    """
    producers, readers = producer_blocks(config), reader_blocks(config)
    optional = optional_block(config)
    after = 0 if optional else 1  # where the optional block was left out, the readers left are further out
    ranked = [(len(producers) - i, block) for i, block in enumerate(producers)]
    ranked += [(i + after + 1.5, block) for i, block in enumerate(readers)]
    first = producers[0]
    ordered = [block for _, block in sorted(ranked) if block not in (first, optional)]
    ordered.append(first)
    everywhere = tuple(layer for layer in range(config.num_hidden_layers) if layer not in optional)
    is_global = {layer for layer in everywhere if config.layer_types[layer] is LayerType.full_attention}
    groups = [
        tuple(sorted(is_global)),
        *(tuple(layer for layer in block if layer not in is_global) for block in ordered),
    ]
    return [group for group in groups if group]
