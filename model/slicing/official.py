# SPDX-License-Identifier: Apache-2.0
"""Google's sub-models of E4B, and what is like them in a model of another depth or width.

A layer stands for the layer of E4B at the same place, of the same kind: as far through the layers that make keys and
values, through the block that may be left out, or through the readers behind it. Of E4B itself the sub-models are
those of the table, to the layer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import LayerType, TextConfig
from model.slicing.spec import SliceSpec
from model.slicing.table import SliceRow, published_rows, short_name
from model.slicing.trained import GEMMA_3N_READERS, GEMMA_3N_WIDTHS, narrow_width, optional_block

LAYERS, BLOCK = 35, 5  # of E4B, whose blocks end with a global layer
HIDDEN, VOCABULARY = 2048, 262_400
FIRST_READER = LAYERS - GEMMA_3N_READERS
PRODUCERS = range(FIRST_READER)
OPTIONAL = range(FIRST_READER, FIRST_READER + BLOCK)
READERS = range(FIRST_READER + BLOCK, LAYERS)


@dataclass(frozen=True)
class Official:
    """A sub-model of the table.

    Args:
        spec: The part it is, under the short form of its name, as in ``e2_54b_layer``.
        name: As it is published.
        accuracy: Of MMLU, of the published pre-trained E4B: a share, or None. Nobody measured it here.
        is_itself: Whether the model has E4B's shape and nothing is known to have changed its weights, so that this may
            be what was published; else it is like it. Weights themselves are not compared.
    """

    spec: SliceSpec
    name: str
    accuracy: float | None
    is_itself: bool


def official(config: TextConfig, *, tuned: bool = False) -> list[Official]:
    """All sub-models of the table as parts of a model of this config, in its order.

    In a shallow model several may be the same part.

    Args:
        config: The model's.
        tuned: Whether its weights are known to be others than the published ones, as with an adapter.
    """
    is_itself = is_e4b(config) and not tuned
    return [Official(scaled(row, config), row.name, share(row.accuracy), is_itself) for row in published_rows()]


def is_e4b(config: TextConfig) -> bool:
    """Whether a model has the shape of E4B: layers, widths, and vocabulary."""
    kinds = tuple(
        LayerType.full_attention if layer % BLOCK == BLOCK - 1 else LayerType.sliding_attention
        for layer in range(LAYERS)
    )
    return (
        config.layer_types == kinds
        and config.num_kv_shared_layers == GEMMA_3N_READERS
        and set(config.intermediate_size) == {max(GEMMA_3N_WIDTHS)}
        and (config.hidden_size, config.vocab_size) == (HIDDEN, VOCABULARY)
    )


def scaled(row: SliceRow, config: TextConfig) -> SliceSpec:
    """The part of a model of this config that is like a row of the table."""
    skipped = frozenset(row.written.skip_layers)
    kept = [layer for layer in range(LAYERS) if layer not in skipped]
    widths = row.written.ffn_widths
    width_of = dict(zip(kept, widths if len(widths) > 1 else widths * len(kept), strict=True))
    chosen = {
        layer: config.intermediate_size[layer]
        if width_of[like] == max(GEMMA_3N_WIDTHS)
        else narrow_width(config, layer)
        for layer, like in enumerate(counterparts(config))
        if like not in skipped
    }
    spec = SliceSpec(short_name(row.name), tuple(chosen), tuple(chosen.values()))
    spec.check(config)
    return spec


def counterparts(config: TextConfig) -> list[int]:
    """The layer of E4B that each layer is like."""
    optional = optional_block(config)
    behind = range(config.first_shared_layer + len(optional), config.num_hidden_layers)
    stretches = ((range(config.first_shared_layer), PRODUCERS), (optional, OPTIONAL), (behind, READERS))
    return [like for own, theirs in stretches for like in alike(own, theirs, config)]


def alike(own: Sequence[int], theirs: range, config: TextConfig) -> list[int]:
    """For each layer of a stretch, that of the same kind of a stretch of E4B which is next to the same place."""
    found: list[int] = []
    for place, layer in enumerate(own):
        is_global = config.layer_types[layer] is LayerType.full_attention
        same = [one for one in theirs if (one % BLOCK == BLOCK - 1) == is_global]
        at = theirs.start + (place + 0.5) * len(theirs) / len(own) - 0.5
        behind = bisect_left(same, at)
        found.append(min(same[max(behind - 1, 0) : behind + 1], key=lambda one: abs(one - at)))
    return found


def share(accuracy: str) -> float | None:
    """A share written as "62.30%"; None where nothing is written."""
    return float(accuracy.removesuffix("%")) / 100 if accuracy else None
