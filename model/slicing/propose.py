# SPDX-License-Identifier: Apache-2.0
"""The inverse of a plan: the sub-model of trained widths that comes closest under a budget.

Depth first: of the depths that fit at their narrowest, the deepest is taken; below the trained ones, a
sub-model lacks layers that it was never trained without. Then layers are widened in the order of
``widening_order``: a group of layers only when all before it are wide, and of the last group those layers that
bring the size closest under the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import prod

from model.checkpoint.names import is_tower
from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig, TextConfig
from model.errors import ConfigError, SliceError
from model.slicing.advice import told
from model.slicing.config import slice_text_config
from model.slicing.count import Layout, layer_shapes, text_shapes
from model.slicing.plan import StoredAs, cache_bytes, check_context, count, weight_bytes
from model.slicing.spec import SliceSpec
from model.slicing.trained import depths, narrow_width, widening_order

MAX_GROUP = 8  # layers of which every choice is tried; larger groups are taken in parts


@dataclass(frozen=True)
class Size:
    """What a budget limits."""

    effective: int  # parameters, as Google counts them (Layout.published)
    num_bytes: int  # weights that something computes with, towers included, and the keys and values of one sequence

    def __add__(self, other: Size) -> Size:
        return Size(self.effective + other.effective, self.num_bytes + other.num_bytes)

    def __sub__(self, other: Size) -> Size:
        return Size(self.effective - other.effective, self.num_bytes - other.num_bytes)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a size; None is no limit.

    ``context_tokens`` are those whose keys and values count as bytes (0: none do), stored as ``cache_dtype``;
    None stands for what goes with ``dtype``: 16 bits, or fp32 beside fp32.
    """

    max_effective: int | None = None
    max_bytes: int | None = None
    context_tokens: int = 0
    dtype: StoredAs = StoredAs.bf16
    cache_dtype: StoredAs | None = None

    @property
    def stored_cache(self) -> StoredAs:
        """How keys and values are stored."""
        return self.cache_dtype or self.dtype.cache

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.max_effective is not None or self.max_bytes is not None

    def allows(self, size: Size) -> bool:
        """Whether a sub-model of this size is within the limits."""
        limits = ((self.max_effective, size.effective), (self.max_bytes, size.num_bytes))
        return all(limit is None or found <= limit for limit, found in limits)

    def rank(self, size: Size) -> int:
        """What is to come as close to its limit as possible: the effective parameters if they are limited."""
        return size.num_bytes if self.max_effective is None else size.effective

    def parts(self, config: ModelConfig, spec: SliceSpec) -> tuple[int, int]:
        """Bytes of the weights of the sub-model ``spec``, and of its keys and values."""
        small = slice_text_config(config.text, spec)
        weights = weight_bytes(text_shapes(small, Layout.used), self.dtype) + tower_bytes(config, self.dtype)
        return weights, cache_bytes(small, self.context_tokens, self.stored_cache)

    def size(self, config: ModelConfig, spec: SliceSpec) -> Size:
        """How large the sub-model ``spec`` of a model of this config is."""
        small = slice_text_config(config.text, spec)
        return Size(count(text_shapes(small, Layout.published)).effective, sum(self.parts(config, spec)))


def propose(config: ModelConfig, budget: Budget) -> SliceSpec:
    """The sub-model of trained widths of a model of this config, closest under the budget.

    Towers stay as the config has them: give one without them (``config.only``) to plan without.

    Raises:
        ConfigError: The budget has no limit, or a context that the model cannot have.
        SliceError: No sub-model of trained widths is so small; the message names the smallest.
    """
    if not budget.is_limited:
        raise ConfigError("plan: no budget is given; set max_effective (parameters) or max_bytes")
    if budget.context_tokens:
        check_context(config.text, budget.context_tokens)
    narrowest = [
        SliceSpec("narrowest", kept, tuple(narrow_width(config.text, layer) for layer in kept))
        for kept in depths(config.text)
    ]
    for spec in narrowest:
        if budget.allows(size := budget.size(config, spec)):
            return widened(config, spec, size, budget)
    raise SliceError(explain_impossible(config, budget, narrowest[-1]))


def widened(config: ModelConfig, narrowest: SliceSpec, size: Size, budget: Budget) -> SliceSpec:
    """The sub-model of this depth, whose narrowest is of ``size``, widened as far as the budget goes."""
    widths = dict(zip(narrowest.kept_layers, narrowest.ffn_widths, strict=True))
    gains = gains_of(config.text, narrowest, budget)
    for group in in_parts(widening_order(config.text)):
        offered = {layer: gains[layer] for layer in group if layer in gains}
        chosen = closest(budget, size, offered)
        size = sum((offered[layer] for layer in chosen), start=size)
        widths |= {layer: config.text.intermediate_size[layer] for layer in chosen}
        if len(chosen) < len(offered):
            break
    return SliceSpec(name_of(size.effective), tuple(widths), tuple(widths.values()))


def gains_of(config: TextConfig, narrowest: SliceSpec, budget: Budget) -> dict[int, Size]:
    """By how much a sub-model grows with each layer that gets its parent's width, whatever the others have."""
    small = slice_text_config(config, narrowest)
    gains: dict[int, Size] = {}
    for position, layer in enumerate(narrowest.kept_layers):
        if narrowest.ffn_widths[position] < config.intermediate_size[layer]:
            wide, narrow = (
                Size(sum(map(prod, shapes.values())), weight_bytes(shapes, budget.dtype))
                for shapes in (layer_shapes(config, layer), layer_shapes(small, position))
            )
            gains[layer] = wide - narrow
    return gains


def closest(budget: Budget, size: Size, gains: Mapping[int, Size]) -> tuple[int, ...]:
    """The layers to widen from ``size`` on to come closest under the budget; the first ones where it is the same."""
    best: tuple[int, ...] = ()
    highest = budget.rank(size)
    for number in range(1, len(gains) + 1):
        for chosen in combinations(gains, number):
            total = sum((gains[layer] for layer in chosen), start=size)
            if budget.allows(total) and budget.rank(total) > highest:
                best, highest = chosen, budget.rank(total)
    return best


def in_parts(groups: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """The same groups, the larger ones cut."""
    for group in groups:
        for start in range(0, len(group), MAX_GROUP):
            yield group[start : start + MAX_GROUP]


@cache
def tower_bytes(config: ModelConfig, kind: StoredAs) -> int:
    """Bytes of the towers and their embedders, which every size has."""
    shapes = model_shapes(config, Layout.used)
    return weight_bytes({name: shape for name, shape in shapes.items() if is_tower(name)}, kind)


def name_of(effective: int) -> str:
    """A name that tells the size, as in ``e2_97b``: effective parameters in billions, or in the unit below."""
    for unit, letter in ((10**9, "b"), (10**6, "m"), (10**3, "k")):
        if effective >= unit:
            return f"e{effective / unit:.2f}{letter}".replace(".", "_")
    return f"e{effective}"


def explain_impossible(config: ModelConfig, budget: Budget, smallest: SliceSpec) -> str:
    """That a budget is too small, which sub-model is the smallest, how large it is, and what to do."""
    size, (weights, cache) = budget.size(config, smallest), budget.parts(config, smallest)
    limits: list[str] = []
    needs: list[str] = []
    remedies: list[str] = []
    if budget.max_effective is not None:
        limits.append(f"max_effective={budget.max_effective:,}")
        needs.append(f"{size.effective:,} effective parameters")
    if budget.max_bytes is not None:
        limits.append(f"max_bytes={budget.max_bytes:,}")
        parts = f"{weights:,} of weights as {budget.dtype}, {cache:,} of keys and values"
        needs.append(f"{size.num_bytes:,} bytes ({parts} of {budget.context_tokens:,} tokens)")
        if budget.dtype is not StoredAs.int4:
            remedies.append("store it smaller (dtype=int4)")
        if config.is_multimodal:
            remedies.append("leave towers out (modalities=[text])")
    widths = sorted(set(smallest.ffn_widths))
    at = f"each at width {widths[0]}" if len(widths) == 1 else f"at widths {widths[0]} to {widths[-1]}"
    remedies.append("write a slice of narrower layers yourself, knowing that they were never trained")
    return (
        f"plan: no sub-model of trained widths fits {' and '.join(limits)}: the smallest keeps"
        f" {told(smallest.kept_layers)}, {at}, and has {' and '.join(needs)}; allow that much, or"
        f" {', or '.join(remedies)}"
    )
