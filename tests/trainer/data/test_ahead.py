# SPDX-License-Identifier: Apache-2.0
"""What threads make ahead is what would have been made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from trainer.data.ahead import Ahead


@dataclass
class Square:
    """A function that remembers what it was asked."""

    asked: list[int] = field(default_factory=list)

    def __call__(self, number: int) -> int:
        self.asked.append(number)
        if number == 13:
            raise ValueError("thirteen")
        return number * number


@pytest.fixture(params=[0, 1, 3])
def ahead(request: pytest.FixtureRequest) -> Iterator[Ahead[int]]:
    """Squares of even numbers below 40."""
    with closing(Ahead(Square(), stride=2, end=40, workers=request.param)) as values:
        yield values


def test_values_are_those_of_the_function_in_any_order(ahead: Ahead[int]) -> None:
    for number in (0, 2, 4, 20, 22, 6, 6, 38, 50):
        assert ahead(number) == number * number


def test_no_value_is_made_twice_or_beyond_the_end_where_all_are_asked_for_in_turn(ahead: Ahead[int]) -> None:
    for number in range(0, 40, 2):
        assert ahead(number) == number * number
    assert isinstance(ahead.make, Square)
    assert sorted(ahead.make.asked) == list(range(0, 40, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_when_its_value_is_asked_for(workers: int) -> None:
    with closing(Ahead(Square(), end=40, workers=workers)) as values:
        assert values(12) == 144
        with pytest.raises(ValueError, match="thirteen"):
            values(13)
        assert values(14) == 196
