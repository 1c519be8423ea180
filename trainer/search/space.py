# SPDX-License-Identifier: Apache-2.0
"""What is searched: groups of layers, each of which is left out or has one of a few widths.

A point of the space is one choice for every group, by number. Groups are bound to each other only by layers whose
keys and values others read, of which there is one for each kind of attention. So the legal points are a few boxes,
each the product of what its groups may choose, and everything here goes box by box: counting, listing, drawing, and
searching exactly.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64

from model.config import TextConfig
from model.errors import ConfigError
from model.slicing.advice import told
from model.slicing.spec import SliceSpec, is_whole
from model.slicing.trained import narrow_width, optional_block

Point = tuple[int, ...]  # of each group, the number of its choice
Box = tuple[tuple[int, ...], ...]  # of each group, the choices that go together with any of the others'
Choice = tuple[int, ...]  # a width for each layer of a group; none: the group is left out


@dataclass(kw_only=True, slots=True)
class SpaceConfig:
    """Which sub-models may be found; by default those at the widths and depths that Gemma 3n was trained at.

    Raises:
        ConfigError: A value can be none of any space.
    """

    block: int = 1  # neighbouring layers that always share a choice; the blocks of E4B are of 5
    widths: list[int] = field(default_factory=list)  # that any layer may have; none = those it was trained at
    # groups of layers, each of which may be left out as a whole, such as [[20,21,22,23,24]]; null = the block that
    # was trained both present and absent
    skip: list[list[int]] | None = None

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ConfigError(f"space.block is {self.block}; it is a number of layers, at least 1")
        if odd := [width for width in self.widths if not is_whole(width) or width < 1]:
            raise ConfigError(f"space.widths has {odd[0]!r}; widths are whole numbers from 1 on")
        if len(set(self.widths)) < len(self.widths):
            raise ConfigError(f"space.widths is {self.widths}; name each width once")


@dataclass(frozen=True)
class Group:
    """Layers that share a choice, and what they may choose, the least first.

    Choices are not alike: each makes at least one layer wider than the one before it.
    """

    layers: tuple[int, ...]
    choices: tuple[Choice, ...]

    @property
    def may_be_skipped(self) -> bool:
        """Whether the first choice is to leave the layers out."""
        return not self.choices[0]


@dataclass(frozen=True)
class Space:
    """Some legal sub-models of a parent.

    Raises:
        ConfigError: A group could only be left out by leaving out something that always stays, or nothing stays.
    """

    config: TextConfig
    groups: tuple[Group, ...]  # in the order of their first layers

    def __post_init__(self) -> None:
        if all(group.may_be_skipped for group in self.groups):
            raise ConfigError(
                "space.skip names every layer, and a sub-model has at least one; leave out of it what always stays"
            )
        for number in self.bound:
            for reader, layer, producer in self.read_outside(number):
                if not self.groups[reader].may_be_skipped:
                    kind = self.config.layer_types[layer]
                    raise ConfigError(
                        f"space.skip names {told(self.groups[number].layers)}, but layer {layer} ({kind}) reads the"
                        f" keys and values of layer {producer}, and always stays; take {producer} out of space.skip,"
                        f" or put every {kind} layer from {self.config.first_shared_layer} on into it"
                    )

    @classmethod
    def of(cls, written: SpaceConfig, config: TextConfig) -> Space:
        """The space of a parent.

        Raises:
            ConfigError: A layer is not there or named twice, none of the widths fits a layer, or as the class.
        """
        skipped = skip_groups(written, config)
        apart = {layer for layers in skipped for layer in layers}
        blocks: dict[int, list[int]] = {}
        for layer in range(config.num_hidden_layers):
            if layer not in apart:
                blocks.setdefault(layer // written.block, []).append(layer)
        groups = [Group(layers, ((), *shared_widths(layers, written, config))) for layers in skipped]
        groups += [Group(tuple(layers), shared_widths(layers, written, config)) for layers in blocks.values()]
        return cls(config, tuple(sorted(groups, key=lambda group: group.layers)))

    @property
    def top(self) -> Point:
        """Everything kept, at the widest."""
        return tuple(len(group.choices) - 1 for group in self.groups)

    @cached_property
    def bound(self) -> tuple[int, ...]:
        """Groups that may be left out only together with groups that read what they make."""
        return tuple(
            number for number, group in enumerate(self.groups) if group.may_be_skipped and self.read_outside(number)
        )

    def read_outside(self, number: int) -> list[tuple[int, int, int]]:
        """What of a group is read outside: number of the reading group, reading layer, and producer."""
        own, first = self.groups[number].layers, self.config.first_shared_layer
        return [
            (reader, layer, producer)
            for reader, group in enumerate(self.groups) if reader != number
            for layer in group.layers if layer >= first and (producer := self.config.kv_producer(layer)) in own
        ]  # fmt: skip

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The legal points, each in one box."""
        found: list[Box] = []
        for left_out in itertools.product((False, True), repeat=len(self.bound)):
            skipped = {number for number, out in zip(self.bound, left_out, strict=True) if out}
            kept = set(self.bound) - skipped
            forced = skipped | {reader for number in skipped for reader, _, _ in self.read_outside(number)}
            if not forced & kept:
                found.append(tuple(self.allowed(number, forced, kept) for number in range(len(self.groups))))
        return tuple(found)

    def allowed(self, number: int, skipped: set[int], kept: set[int]) -> tuple[int, ...]:
        """Choices of a group of which it is known that it is left out, that it stays, or neither."""
        choices = range(len(self.groups[number].choices))
        return (0,) if number in skipped else tuple(choices[1:] if number in kept else choices)

    @property
    def size(self) -> int:
        """How many legal points there are."""
        return sum(box_size(box) for box in self.boxes)

    def __iter__(self) -> Iterator[Point]:
        """All legal points, of which there may be very many."""
        for box in self.boxes:
            yield from itertools.product(*box)

    def is_legal(self, point: Sequence[int]) -> bool:
        """Whether a point is one of this space."""
        if len(point) != len(self.groups):
            return False
        return any(all(one in allowed for one, allowed in zip(point, box, strict=True)) for box in self.boxes)

    @cached_property
    def allowed_in_boxes(self) -> Bool[np.ndarray, "boxes groups choices"]:
        """Of each box, whether a choice of a group is in it."""
        found = np.zeros((len(self.boxes), len(self.groups), max(self.top) + 1), bool)
        for number, box in enumerate(self.boxes):
            for group, choices in enumerate(box):
                found[number, group, list(choices)] = True
        return found

    def are_legal(self, points: Int64[np.ndarray, "points groups"]) -> Bool[np.ndarray, " points"]:
        """``is_legal`` of each point, whose choices are numbers that some group has."""
        groups = np.arange(len(self.groups))
        return np.any([allowed[groups, points].all(axis=1) for allowed in self.allowed_in_boxes], axis=0)

    def draw(self, chance: random.Random) -> Point:
        """A legal point; each is as likely as any other."""
        (box,) = chance.choices(self.boxes, [box_size(box) for box in self.boxes])
        return tuple(chance.choice(allowed) for allowed in box)

    def moves(self, point: Point) -> Iterator[tuple[int, Point]]:
        """Legal points that differ by one step of one group, with the group's number."""
        for number, group in enumerate(self.groups):
            for choice in (point[number] - 1, point[number] + 1):
                moved = with_choice(point, number, choice)
                # Where no group is bound to others, every choice goes with every other.
                if 0 <= choice < len(group.choices) and (not self.bound or self.is_legal(moved)):
                    yield number, moved

    def spec(self, point: Point) -> SliceSpec:
        """The sub-model of a legal point, named by its choices."""
        widths = {
            layer: width
            for group, choice in zip(self.groups, point, strict=True) if group.choices[choice]
            for layer, width in zip(group.layers, group.choices[choice], strict=True)
        }  # fmt: skip
        kept = tuple(sorted(widths))
        between = "" if max(self.top) < 10 else "."
        name = "s" + between.join(map(str, point))
        return SliceSpec(name, kept, tuple(widths[layer] for layer in kept))


def box_size(box: Box) -> int:
    """How many points are in a box."""
    return math.prod(map(len, box))


def with_choice(point: Point, number: int, choice: int) -> Point:
    """The same point, but for the choice of one group."""
    return (*point[:number], choice, *point[number + 1 :])


def skip_groups(written: SpaceConfig, config: TextConfig) -> list[tuple[int, ...]]:
    """The groups that may be left out, their layers in order.

    Raises:
        ConfigError: A group is empty, or a layer is not there or named twice.
    """
    if written.skip is None:
        return [block] if (block := optional_block(config)) else []
    groups = [tuple(sorted(layers)) for layers in written.skip]
    if not all(groups):
        raise ConfigError("space.skip has a group without layers; write groups of layers, such as [[3],[4,5]]")
    named = [layer for group in groups for layer in group]
    last = config.num_hidden_layers - 1
    if unknown := [layer for layer in named if not is_whole(layer) or not 0 <= layer <= last]:
        raise ConfigError(f"space.skip has layer {unknown[0]!r}, but the parent has layers 0 to {last}")
    if twice := [layer for layer in named if named.count(layer) > 1]:
        raise ConfigError(f"space.skip has layer {twice[0]} more than once; name each layer in one group")
    return groups


def shared_widths(layers: Sequence[int], written: SpaceConfig, config: TextConfig) -> tuple[Choice, ...]:
    """The widths that layers have together, from all at their narrowest to all at their widest.

    Where layers may have different numbers of widths, those that have fewer stay at their widest.
    """
    each = [widths_of(layer, written, config) for layer in layers]
    return tuple(
        tuple(widths[min(step, len(widths) - 1)] for widths in each) for step in range(max(map(len, each)))
    )  # fmt: skip


def widths_of(layer: int, written: SpaceConfig, config: TextConfig) -> list[int]:
    """What a layer may have, the narrowest first."""
    own = config.intermediate_size[layer]
    if not written.widths:
        return sorted({narrow_width(config, layer), own})
    fitting = sorted(width for width in written.widths if width <= own)
    if not fitting:
        raise ConfigError(
            f"space.widths is {written.widths}, but layer {layer} has {own} neurons, fewer than each of them; name a"
            f" width up to {own} too"
        )
    return fitting
