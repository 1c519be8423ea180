# SPDX-License-Identifier: Apache-2.0
"""The running average of what is trained."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model.errors import CheckpointError, ConfigError
from trainer.average import Average, AverageConfig


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (3, 4), "vector": (5,), "number": ()}
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}


@torch.no_grad()
def move(trained: dict[str, nn.Parameter], step: int) -> None:
    """Something in the place of an optimizer's step."""
    generator = torch.Generator().manual_seed(step)
    for parameter in trained.values():
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def copies(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@given(decay=st.floats(0, 0.999), every=st.integers(1, 3), steps=st.integers(0, 12))
def test_without_warm_up_it_is_the_sum_of_all_values_by_falling_weights(decay: float, every: int, steps: int) -> None:
    trained = parameters()
    average = Average(trained, AverageConfig(decay=decay, every=every, warmup=False))
    seen = [copies(trained)]
    for step in range(1, steps + 1):
        move(trained, step)
        average.update(step)
        if step % every == 0:
            seen.append(copies(trained))
    updates = len(seen) - 1
    shares = [decay**updates, *((1 - decay) * decay ** (updates - number) for number in range(1, updates + 1))]
    for name, found in average.averages.items():
        expected = sum(share * values[name].double() for share, values in zip(shares, seen, strict=True))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)  # sums in float32, in turn


def test_with_warm_up_early_updates_forget_more() -> None:
    average = Average(parameters(), AverageConfig(decay=0.9))
    decays = [average.decay_at(update) for update in range(200)]
    assert decays[:2] == pytest.approx([0.1, 2 / 11])
    assert decays == sorted(decays)
    assert decays[-1] == 0.9


def test_an_average_of_what_does_not_move_is_that() -> None:
    trained = parameters()
    average = Average(trained, AverageConfig(decay=0.99))
    for step in range(1, 50):
        average.update(step)
    assert_equal(average.averages, copies(trained))


def test_small_movements_of_bfloat16_weights_are_averaged_in_float32() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    average = Average({"weight": weight}, AverageConfig(decay=0.999, warmup=False))
    weight.data += 2**-7  # the smallest step from 1; a thousandth of it is lost in bfloat16
    average.update(1)
    assert average.averages["weight"].item() == pytest.approx(1 + 2**-7 / 1000, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_within_the_block_the_parameters_are_the_average_and_afterwards_what_they_were(dtype: torch.dtype) -> None:
    trained = parameters(dtype)
    average = Average(trained, AverageConfig(decay=0.5))
    move(trained, 1)
    average.update(1)
    before, averaged = copies(trained), copies(average.averages)
    with average.applied():
        assert_equal(copies(trained), {name: value.to(dtype) for name, value in averaged.items()})
        assert_equal(average.state_dict()["averages"], averaged)
        assert not torch.equal(trained["matrix"], before["matrix"])
    assert_equal(copies(trained), before)
    assert_equal(average.averages, averaged)


def test_the_parameters_come_back_from_a_block_that_fails() -> None:
    trained = parameters()
    average = Average(trained, AverageConfig(decay=0.5))
    move(trained, 1)
    before = copies(trained)
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    assert_equal(copies(trained), before)
    average.update(1)  # and it can go on


def test_no_update_is_taken_from_parameters_that_are_the_average() -> None:
    average = Average(parameters(), AverageConfig(decay=0.5))
    with average.applied(), pytest.raises(AssertionError):
        average.update(1)


def test_an_average_that_is_put_back_goes_on_bit_for_bit() -> None:
    straight, resumed = parameters(torch.bfloat16), parameters(torch.bfloat16)
    config = AverageConfig(decay=0.9, every=2)
    whole, first = Average(straight, config), Average(resumed, config)
    for step in range(1, 6):
        for trained, average in ((straight, whole), (resumed, first)):
            move(trained, step)
            average.update(step)
    second = Average(parameters(torch.bfloat16), config)
    second.load_state_dict(through_a_file(first.state_dict()))
    second.parameters = resumed
    for step in range(6, 12):
        for trained, average in ((straight, whole), (resumed, second)):
            move(trained, step)
            average.update(step)
    assert second.num_updates == whole.num_updates == 5
    assert_equal(second.averages, whole.averages)


def test_a_state_of_other_parameters_is_refused() -> None:
    state = Average(parameters(), AverageConfig(decay=0.9)).state_dict()
    fewer = {name: parameter for name, parameter in parameters().items() if name != "vector"}
    with pytest.raises(CheckpointError, match=r"has 3 parameters, the run trains 2, and 'vector' is in one of them"):
        Average(fewer, AverageConfig(decay=0.9)).load_state_dict(state)
    wider = parameters() | {"vector": nn.Parameter(torch.zeros(6))}
    with pytest.raises(CheckpointError, match=r"'vector' has the shape \(5,\).*not \(6,\)"):
        Average(wider, AverageConfig(decay=0.9)).load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": 1.0}, r"average\.decay is 1\.0"),
        ({"decay": -0.1}, r"average\.decay is -0\.1"),
        ({"decay": float("nan")}, r"average\.decay is nan"),
        ({"every": 0}, r"average\.every is 0"),
    ],
)
def test_a_value_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AverageConfig(**dict[str, Any](decay=0.9) | changes)
