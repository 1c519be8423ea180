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


class Clock:
    """Time that passes only when it is looked at, and in slow layers."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def watch_of(*, tick: float = 1e-6, **changes: int) -> Stopwatch:
    """The tiny model with two slow layers, on a clock of its own, every look at which takes ``tick`` seconds."""
    model, clock = tiny_model(), Clock(tick)
    layers = model.model.language_model.layers
    for number, seconds in EXTRA.items():
        network: Any = layers[number].get_submodule("mlp")

        def waiting(x: torch.Tensor, width: int, own: Any = network.forward, most: float = seconds) -> Any:
            clock.now += most * width / 48
            return own(x, width)

        network.forward = waiting
    return Stopwatch(model, LatencyConfig(**{"context_tokens": 8, "repeats": 3, **changes}), clock)


SPACE = Space.of(SpaceConfig(widths=[12, 48], skip=[[3, 4, 5]]), TINY_TEXT)


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_each_choice_is_timed_by_itself(new_tokens: int) -> None:
    watch = watch_of(new_tokens=new_tokens)
    costs = latency_costs(SPACE, watch)
    assert costs.resource is Resource.latency_seconds
    expected = {group.layers: [0.0] * len(group.choices) for group in SPACE.groups}
    expected |= {(0,): [1.5, 6.0], (3, 4, 5): [0, 0.75, 3.0]}
    for group, of_group in zip(SPACE.groups, costs.table, strict=True):
        assert of_group == pytest.approx([1e9 * seconds for seconds in expected[group.layers]], abs=1e6)


def test_looking_at_the_clock_around_layers_costs_sub_models_nothing() -> None:
    # The eighteen looks around nine layers take 4.5 seconds, as much as half of what the whole model does.
    watch = watch_of(tick=0.25)
    whole = watch.seconds_of([SPACE.spec(SPACE.top)])[0]
    assert whole == pytest.approx(9.25)
    assert latency_costs(SPACE, watch).at(SPACE.top) == pytest.approx(whole * 1e9, rel=0.06)


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
