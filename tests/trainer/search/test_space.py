# SPDX-License-Identifier: Apache-2.0
"""The points of a space are all legal sub-models that it names, each once."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ConfigError, SliceError
from tests.tiny import TINY_TEXT
from tests.trainer.search.spaces import BLOCK, BOUND, spaces
from trainer.search.space import Point, Space, SpaceConfig


def legal_by_trying(space: Space) -> set[Point]:
    """All choices of all groups, of which the spec's own check lets some through."""
    found = set()
    for point in itertools.product(*(range(len(group.choices)) for group in space.groups)):
        spec = space.spec(point)
        try:
            spec.check(space.config)
        except SliceError:
            continue
        found.add(point)
    return found


@settings(max_examples=30, deadline=None)
@given(spaces())
def test_points_are_exactly_those_that_the_parent_allows(space: Space) -> None:
    listed = list(space)
    assert set(listed) == legal_by_trying(space)
    assert len(listed) == len(set(listed)) == space.size
    assert space.top in set(listed)
    every = list(itertools.product(range(max(space.top) + 1), repeat=len(space.groups)))[
        :: 1 + 3 ** len(space.top) // 50
    ]
    assert space.are_legal(np.array(every)).tolist() == [space.is_legal(point) for point in every]


@settings(max_examples=30, deadline=None)
@given(spaces(), st.integers(0, 10_000))
def test_draws_and_moves_stay_legal(space: Space, seed: int) -> None:
    legal = set(space)
    point = space.draw(random.Random(seed))
    assert point in legal
    assert space.is_legal(point)
    for number, moved in space.moves(point):
        assert moved in legal
        assert [i for i, (a, b) in enumerate(zip(point, moved, strict=True)) if a != b] == [number]


def test_every_point_is_drawn_about_equally_often() -> None:
    space = Space.of(SpaceConfig(widths=[48], skip=[[2], [5, 8], [3]]), TINY_TEXT)
    chance = random.Random(0)
    drawn = Counter(space.draw(chance) for _ in range(2000))
    assert set(drawn) == set(space)
    assert max(drawn.values()) < 2 * min(drawn.values())


def test_by_default_widths_and_depths_are_those_that_were_trained() -> None:
    space = Space.of(SpaceConfig(), TINY_TEXT)
    choices = {group.layers: group.choices for group in space.groups}
    assert choices.pop((3, 4, 5)) == ((), (48, 48, 48))  # the first block of readers: whole or not at all
    assert choices == {(layer,): ((24,), (48,)) for layer in (0, 1, 2, 6, 7, 8)}


def test_blocks_share_a_width_and_layers_of_fewer_widths_stay_at_their_widest() -> None:
    config = dataclasses.replace(TINY_TEXT, intermediate_size=(48, 48, 20, *(48,) * 6))
    space = Space.of(SpaceConfig(block=3, widths=[16, 24, 48], skip=[]), config)
    assert [group.layers for group in space.groups] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert space.groups[0].choices == ((16, 16, 16), (24, 24, 16), (48, 48, 16))


def test_layers_whose_keys_and_values_are_read_go_together_with_their_readers() -> None:
    space = Space.of(BOUND, TINY_TEXT)
    for point in space:
        spec = space.spec(point)
        if 1 not in spec.kept_layers:
            assert not {3, 4, 6, 7} & set(spec.kept_layers)
    assert any(1 not in space.spec(point).kept_layers for point in space)


def test_names_tell_points_apart() -> None:
    space = Space.of(BLOCK, TINY_TEXT)
    names = [space.spec(point).name for point in space]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 0}, "space.block is 0"),
        ({"widths": [24, 0]}, "space.widths has 0"),
        ({"widths": [24, 24]}, "name each width once"),
        ({"widths": [49, 96]}, "has 48 neurons, fewer than each of them; name a width up to 48"),
        ({"skip": [[9]]}, "has layer 9, but the parent has layers 0 to 8"),
        ({"skip": [[3], [3, 4]]}, "layer 3 more than once"),
        ({"skip": [[]]}, "a group without layers"),
        ({"skip": [[2]]}, "layer 5 (full_attention) reads the keys and values of layer 2, and always stays; take 2"),
        ({"skip": [[layer] for layer in range(9)]}, "names every layer"),
    ],
)
def test_a_space_without_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Space.of(SpaceConfig(**changes), TINY_TEXT)  # type: ignore[arg-type]
    assert message in str(error.value)
