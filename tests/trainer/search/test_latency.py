# SPDX-License-Identifier: Apache-2.0
"""Times of layers are taken on the model itself, and sum to about what whole sub-models take."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from model.errors import ConfigError
from tests.tiny import TINY_TEXT, tiny_model
from trainer.search.cost import Resource
from trainer.search.latency import LatencyConfig, Stopwatch, latency_costs
from trainer.search.space import Space, SpaceConfig

EXTRA = {0: 6.0, 4: 3.0}  # seconds that two layers take at their full width, and in proportion when narrower
TICK = 0.25  # of every look at the clock


class Clock:
    """Time that passes only when it is looked at, and in slow layers."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += TICK
        return self.now


def watch_of(**changes: int) -> Stopwatch:
    """The tiny model with two slow layers, on a clock of its own."""
    model, clock = tiny_model(), Clock()
    layers = model.model.language_model.layers
    for number, seconds in EXTRA.items():
        network: Any = layers[number].get_submodule("mlp")

        def waiting(x: torch.Tensor, width: int, own: Any = network.forward, most: float = seconds) -> Any:
            clock.now += most * width / 48
            return own(x, width)

        network.forward = waiting
    return Stopwatch(model, LatencyConfig(**{"context_tokens": 8, "repeats": 3, **changes}), clock)


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_each_choice_is_timed_by_itself(new_tokens: int) -> None:
    watch = watch_of(new_tokens=new_tokens)
    space = Space.of(SpaceConfig(widths=[12, 48], skip=[[3, 4, 5]]), TINY_TEXT)
    costs = latency_costs(space, watch)
    assert costs.resource is Resource.latency_seconds
    expected = {group.layers: [TICK * len(choice) for choice in group.choices] for group in space.groups}
    expected[0,] = [TICK + 1.5, TICK + 6.0]
    expected[3, 4, 5] = [0, 3 * TICK + 0.75, 3 * TICK + 3.0]
    for group, of_group in zip(space.groups, costs.table, strict=True):
        assert of_group == pytest.approx([1e9 * seconds for seconds in expected[group.layers]], rel=1e-3)
    # The table adds up to what the whole model takes, but for the looks at the clock that only telling layers takes.
    whole = watch.seconds_of([space.spec(space.top)])[0] * 1e9
    assert costs.at(space.top) == pytest.approx(whole + 18 * TICK * 1e9, rel=1e-3)


def test_the_hooks_are_gone_afterwards() -> None:
    watch = watch_of()
    watch.model.train()
    latency_costs(Space.of(SpaceConfig(), TINY_TEXT), watch)
    assert watch.model.training
    assert all(not layer._forward_hooks for layer in watch.model.model.language_model.layers)


def test_whole_sub_models_are_timed_by_the_real_clock() -> None:
    watch = Stopwatch(tiny_model(), LatencyConfig(context_tokens=0, new_tokens=64, repeats=3))
    space = Space.of(SpaceConfig(widths=[12, 48], skip=[]), TINY_TEXT)
    begun = time.perf_counter()
    seconds = watch.seconds_of([space.spec(space.top), space.spec((0,) * 9)])
    passed = time.perf_counter() - begun
    assert all(0 < one < passed for one in seconds)
    assert watch.nanoseconds_of(space.spec(space.top)) > 0
    costs = latency_costs(space, watch)
    assert all(cost > 0 for of_group in costs.table for cost in of_group)


def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"latency\.repeats is 1; it must be at least 3"):
        LatencyConfig(repeats=1)
    with pytest.raises(ConfigError, match="context is 601 tokens"):
        watch_of(context_tokens=600)
