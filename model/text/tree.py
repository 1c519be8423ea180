# SPDX-License-Identifier: Apache-2.0
"""Many sub-models over the same tokens: layers that several begin with are run once for all of them.

Sub-models are paths in a tree, whose nodes are stretches of layers, each at some width. The tree is gone through depth
first; where paths part, the streams there, and the keys and values that later layers read, wait for the other
branches. Whatever would not fit into the room for waiting is made again, from the last place that did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from model.config import TextConfig
from model.layers.kv_cache import KeyValues
from model.slicing.spec import SliceSpec

Step = tuple[int, int]  # a layer, by index in the parent, and its width


@dataclass(frozen=True)
class Branch:
    """A node: layers that the same sub-models have in common, one after the other, and what follows them."""

    steps: tuple[Step, ...]
    leaves: tuple[int, ...]  # the sub-models that end here, by their number
    branches: tuple[Branch, ...]
    reads: frozenset[int]  # producers whose keys and values are wanted behind this node

    @property
    def num_steps(self) -> int:
        """Layers that are run where nothing has to be made again."""
        return len(self.steps) + sum(branch.num_steps for branch in self.branches)


@dataclass(frozen=True)
class Point:
    """What is computed up to a place in the tree."""

    streams: Float[Tensor, "batch seq streams dim"]
    produced: Mapping[int, KeyValues]  # by the layer that made them

    def needed(self, readers: frozenset[int]) -> Point:
        """The same, without keys and values that nobody wants any more."""
        return Point(self.streams, {layer: made for layer, made in self.produced.items() if layer in readers})

    @property
    def num_bytes(self) -> int:
        """How much memory it takes."""
        made = [tensor for values in self.produced.values() for tensor in (values.keys, values.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.streams, *made))


@dataclass
class Anchor:
    """A point that is kept until everything that begins there has begun."""

    point: Point | None
    num_bytes: int
    waiting: int = 0  # branches that will be run from here


@dataclass(frozen=True)
class Waiting:
    """A branch to run: from a point that is at hand, or by the steps that lead there from an anchor."""

    branch: Branch
    anchor: Anchor
    way: tuple[Step, ...]
    at_hand: Point | None = None


def tree_of(specs: Sequence[SliceSpec], config: TextConfig, *, at_end: frozenset[int] = frozenset()) -> Branch:
    """The tree of these sub-models, branches in the order in which they are first needed.

    Args:
        specs: The sub-models.
        config: Of their parent.
        at_end: Producers whose keys and values are wanted of every sub-model when all its layers are run, beside what
            the layers themselves read.
    """
    steps = [tuple(zip(spec.kept_layers, spec.ffn_widths, strict=True)) for spec in specs]
    return branch_of(steps, range(len(specs)), 0, config, at_end)


def branch_of(
    steps: Sequence[Sequence[Step]], members: Sequence[int], begin: int, config: TextConfig, at_end: frozenset[int]
) -> Branch:
    """The node of sub-models, given by number, that have the same steps up to ``begin``."""
    end = begin
    while len(nexts := {steps[i][end] if end < len(steps[i]) else None for i in members}) == 1 and nexts != {None}:
        end += 1
    parted: dict[Step, list[int]] = {}
    for i in members:
        if end < len(steps[i]):
            parted.setdefault(steps[i][end], []).append(i)
    branches = tuple(branch_of(steps, others, end, config, at_end) for others in parted.values())
    behind = frozenset(config.kv_producer(layer) for branch in branches for layer, _ in branch.steps)
    return Branch(
        steps=tuple(steps[members[0]][begin:end]), leaves=tuple(i for i in members if len(steps[i]) == end),
        branches=branches, reads=behind.union(at_end, *(branch.reads for branch in branches)),
    )  # fmt: skip


def walk(
    tree: Branch, start: Point, run: Callable[[Sequence[Step], Point], Point], *, kept_bytes: int
) -> Iterator[tuple[int, Point]]:
    """What every sub-model computes, with its number, in the order of the tree.

    Args:
        tree: The sub-models.
        start: What all of them begin with.
        run: Runs layers from a point on.
        kept_bytes: How much may be kept for branches that wait, beside the start.
    """
    room = kept_bytes
    root = Anchor(start, num_bytes=0, waiting=1)
    stack = [Waiting(tree, root, ())]
    while stack:
        now = stack.pop()
        branch, anchor = now.branch, now.anchor
        if (point := now.at_hand) is None:
            assert anchor.point is not None
            point = run(now.way, anchor.point)
        point = run(branch.steps, point).needed(branch.reads)
        way = (*now.way, *branch.steps)
        if len(branch.branches) > 1 and point.num_bytes <= room:
            room -= point.num_bytes
            here, way = Anchor(point, point.num_bytes), ()
        else:
            here = anchor
        here.waiting += len(branch.branches)
        # The last one put here is the next to be run: from what is at hand anyway.
        for place in reversed(range(len(branch.branches))):
            at_hand = point if place == 0 else None
            stack.append(Waiting(branch.branches[place], here, way, at_hand))
        anchor.waiting -= 1
        if anchor.waiting == 0:
            room += anchor.num_bytes
            anchor.point = None
        for leaf in branch.leaves:
            yield leaf, point
        del now, point  # not to be in memory while the next branch is run
