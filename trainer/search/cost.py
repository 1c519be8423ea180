# SPDX-License-Identifier: Apache-2.0
"""What a point of the space costs, as a sum over its groups; and budgets, which are limits of that.

Parameters, bytes and operations are sums over layers, so a table of one number for each choice tells them exactly. The
numbers are differences of ``model.slicing.plan``'s figures for whole sub-models: nothing is counted a second way here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig
from model.errors import ConfigError
from model.slicing.advice import told
from model.slicing.config import slice_config
from model.slicing.count import Layout, text_shapes
from model.slicing.plan import GROUP, StoredAs, cache_bytes, check_context, count, weight_bytes, work_per_token
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from trainer.search.space import Point, Space, with_choice

NANOSECONDS = 1_000_000_000
Figure = TypeVar("Figure", int, float)


class Resource(StrEnum):
    """What a budget limits. Tensors are those that something computes with (``used`` in ``matslice plan``), as in the
    rows of a sweep: what the report says of a sub-model is what its budget was compared with.

    Google's figures also count keys and values of layers that read another's, and are up to a hundredth larger.
    """

    effective_parameters = "effective_parameters"  # of the decoder without its two token tables
    total_parameters = "total_parameters"  # towers included
    weight_bytes = "weight_bytes"  # towers included
    kv_bytes = "kv_bytes"  # keys and values of one sequence of context_tokens
    flops_per_token = "flops_per_token"  # to decode the last of context_tokens
    latency_seconds = "latency_seconds"  # measured on this machine

    @property
    def unit(self) -> str:
        """For axes and messages."""
        return {"effective_parameters": "effective parameters", "total_parameters": "parameters",
                "weight_bytes": "bytes of weights", "kv_bytes": "bytes of keys and values",
                "flops_per_token": "FLOPs per token", "latency_seconds": "seconds"}[self]  # fmt: skip

    @property
    def steps(self) -> int:
        """Whole numbers that a unit is of, in tables and budgets: seconds are told in nanoseconds."""
        return NANOSECONDS if self is Resource.latency_seconds else 1

    def told(self, cost: int) -> str:
        """A cost for a person."""
        return f"{cost / self.steps:.6f} {self.unit}" if self.steps > 1 else f"{cost:,} {self.unit}"


@dataclass(kw_only=True, slots=True)
class CostConfig:
    """What budgets limit, and what it depends on besides the sub-model."""

    resource: Resource = Resource.effective_parameters
    context_tokens: int = 4096  # of kv_bytes and flops_per_token
    dtype: StoredAs = StoredAs.bf16  # of weight_bytes
    cache_dtype: StoredAs = StoredAs.bf16  # of kv_bytes


@dataclass(frozen=True)
class Costs:
    """One number for each choice of each group, and one that every point has; a cost is their sum.

    Args:
        resource: What it is of.
        space: Whose choices.
        constant: What a point costs besides.
        table: What each choice adds, by group and choice; may be negative.
    """

    resource: Resource
    space: Space
    constant: int
    table: tuple[tuple[int, ...], ...]

    def at(self, point: Point) -> int:
        """What a point costs."""
        return self.constant + sum(costs[choice] for costs, choice in zip(self.table, point, strict=True))

    @cached_property
    def padded(self) -> Int64[np.ndarray, "groups choices"]:
        """The table, with zeros where a group has fewer choices than another."""
        most = max(map(len, self.table))
        return np.array([[*costs, *[0] * (most - len(costs))] for costs in self.table], np.int64)

    def after(self, cost: int, point: Point, number: int, choice: int) -> int:
        """What a point costs with another choice in one group, where its own cost is known."""
        of_group = self.table[number]
        return cost + of_group[choice] - of_group[point[number]]

    def of_each(self, points: Int64[np.ndarray, "points groups"]) -> Int64[np.ndarray, " points"]:
        """What many points cost: ``at`` of each, without a loop over them."""
        return self.constant + self.padded[np.arange(points.shape[1]), points].sum(axis=1)

    @property
    def floor(self) -> Point:
        """The cheapest legal point."""
        points = (
            tuple(min(allowed, key=costs.__getitem__) for costs, allowed in zip(self.table, box, strict=True))
            for box in self.space.boxes
        )
        return min(points, key=self.at)

    @property
    def ceiling(self) -> int:
        """What the dearest legal point costs."""
        return self.constant + max(
            sum(max(costs[choice] for choice in allowed) for costs, allowed in zip(self.table, box, strict=True))
            for box in self.space.boxes
        )

    def check(self, budget: int) -> None:
        """Raise ConfigError for a budget that no point keeps, naming the cheapest, and where all cost the same."""
        if self.ceiling == self.at(self.floor):
            raise ConfigError(
                f"search: every sub-model of the space costs {self.resource.told(self.ceiling)}, so that a budget tells"
                f" none of them from another; {self.what_differs}, or take another cost.resource"
            )
        if budget < (least := self.at(self.floor)):
            spec, told_of = self.space.spec(self.floor), self.resource.told
            raise ConfigError(
                f"search: no sub-model of the space keeps a budget of {told_of(budget)}: the cheapest keeps"
                f" {told(spec.kept_layers)}, of widths {widths_in_words(spec)}, and costs {told_of(least)}; allow that"
                " much, or let more be narrowed or left out (space.widths, space.skip)"
            )

    @property
    def what_differs(self) -> str:
        """What to do where all points cost the same."""
        if self.resource is not Resource.kv_bytes:
            return "give layers more widths (space.widths), or let some be left out (space.skip)"
        config, makers = self.space.config, range(self.space.config.first_shared_layer)
        read = {config.kv_producer(layer) for layer in range(len(makers), config.num_hidden_layers)}
        examples = ",".join(f"[{layer}]" for layer in [layer for layer in makers if layer not in read][:2])
        return (
            "widths change no keys and values, and of layers only those make any that read no others', which are"
            f" {told(makers)}; let groups of these be left out"
            + (f", as in space.skip=[{examples}]" if examples else "")
        )

    def spread(self, number: int) -> list[int]:
        """So many budgets, at even distances above the floor and up to the ceiling, which is the last."""
        least, most = self.at(self.floor), self.ceiling
        return [least + (most - least) * (step + 1) // number for step in range(number)]


def widths_in_words(spec: SliceSpec) -> str:
    """Widths of kept layers, one that all have once."""
    found = sorted(set(spec.ffn_widths))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def exact_costs(space: Space, config: ModelConfig, written: CostConfig) -> Costs:
    """The costs of all that is counted and not measured.

    Args:
        space: Of sub-models of the text decoder.
        config: The parent's, towers included if they are to count.
        written: What is counted.

    Raises:
        ConfigError: The context is one that the model cannot have, or bytes do not add up over layers.
    """
    assert written.resource is not Resource.latency_seconds, "measured, not counted"
    if written.resource in (Resource.kv_bytes, Resource.flops_per_token):
        check_context(config.text, written.context_tokens)
    uneven = written.dtype.bits < StoredAs.bf16.bits and config.text.hidden_size_per_layer_input % GROUP != 0
    if written.resource is Resource.weight_bytes and uneven and any(group.may_be_skipped for group in space.groups):
        raise ConfigError(
            f"cost.dtype is {written.dtype}, stored in groups of {GROUP}, but the per-layer embeddings have"
            f" {config.text.hidden_size_per_layer_input} entries a layer, so bytes of layers do not add up; set"
            f" cost.dtype={StoredAs.bf16}, or space.skip=[]"
        )

    def figure(point: Point) -> int:
        return counted_cost(config, space.spec(point), written)

    return Costs(written.resource, space, *by_differences(space, figure))


def counted_cost(config: ModelConfig, spec: SliceSpec, written: CostConfig) -> int:
    """What one sub-model costs."""
    small = slice_config(config, SubModel(spec))
    match written.resource:
        case Resource.effective_parameters:
            return count(text_shapes(small.text, Layout.used)).effective
        case Resource.total_parameters:
            return count(model_shapes(small, Layout.used)).total
        case Resource.weight_bytes:
            return weight_bytes(model_shapes(small, Layout.used), written.dtype)
        case Resource.kv_bytes:
            return cache_bytes(small.text, written.context_tokens, written.cache_dtype)
        case _:
            return work_per_token(small.text, written.context_tokens).total


def closure(space: Space, number: int) -> frozenset[int]:
    """The groups that are left out if this one is: itself, and whatever cannot do without."""
    found, ahead = {number}, [number]
    while ahead:
        for reader, _, _ in space.read_outside(ahead.pop()):
            if reader not in found:
                found.add(reader)
                ahead.append(reader)
    return frozenset(found)


def by_differences(
    space: Space, figure: Callable[[Point], Figure], base: Point | None = None
) -> tuple[Figure, tuple[tuple[Figure, ...], ...]]:
    """A figure of points as a constant and one number for each choice, from differences to one point.

    A group that cannot be left out alone is given what is not told by the others that go with it.

    Args:
        space: Whose choices.
        figure: Of a legal point; exact sums come out exactly.
        base: What points are compared with, of which nothing is left out; None is the top.
    """
    base = space.top if base is None else base
    constant = figure(base)
    table = [[constant - constant] * len(group.choices) for group in space.groups]
    for number, group in enumerate(space.groups):
        for choice in range(1 if group.may_be_skipped else 0, len(group.choices)):
            if choice != base[number]:
                table[number][choice] = figure(with_choice(base, number, choice)) - constant
    skippable = [number for number, group in enumerate(space.groups) if group.may_be_skipped]
    for number in sorted(skippable, key=lambda one: len(closure(space, one))):
        together = closure(space, number)
        point = tuple(0 if i in together else choice for i, choice in enumerate(base))
        table[number][0] = figure(point) - constant - sum(table[other][0] for other in together - {number})
    return constant, tuple(map(tuple, table))
