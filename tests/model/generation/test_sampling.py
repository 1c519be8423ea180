# SPDX-License-Identifier: Apache-2.0
"""Which tokens can be drawn, and that a seed repeats a draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.errors import ConfigError
from model.generation.sampling import SamplingConfig, choose, keep_top_k, keep_top_p

LOGITS = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.1, 0.2, 0.6, 0.1]]).log()


def kept(logits: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def draws(sampling: SamplingConfig, num: int = 200) -> set[int]:
    random = torch.Generator().manual_seed(sampling.seed)
    return {int(choose(LOGITS[:1], sampling, [random])) for _ in range(num)}


def test_temperature_zero_takes_the_best_token() -> None:
    assert choose(LOGITS, SamplingConfig(), [torch.Generator()]).tolist() == [0, 2]


def test_top_k_keeps_the_k_best() -> None:
    assert kept(keep_top_k(LOGITS, 2)) == [[0, 2], [1, 2]]


def test_top_k_of_zero_keeps_all() -> None:
    assert keep_top_k(LOGITS, 0) is LOGITS


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    assert keep_top_k(LOGITS, 9) is LOGITS


@pytest.mark.parametrize(("p", "expected"), [(0.4, [[0], [2]]), (0.55, [[0, 2], [2]]), (0.85, [[0, 1, 2], [0, 1, 2]])])
def test_top_p_keeps_the_fewest_best_tokens_of_that_probability(p: float, expected: list[list[int]]) -> None:
    assert kept(keep_top_p(LOGITS, p)) == expected


def test_top_p_never_leaves_nothing() -> None:
    assert kept(keep_top_p(LOGITS, 1e-9)) == [[0], [2]]


def test_only_kept_tokens_are_drawn() -> None:
    assert draws(SamplingConfig(temperature=1.0, top_k=3, top_p=0.75)) == {0, 2}


def test_every_token_is_drawn_without_limits() -> None:
    assert draws(SamplingConfig(temperature=1.0)) == {0, 1, 2, 3}


def test_draws_follow_the_probabilities() -> None:
    random = torch.Generator().manual_seed(0)
    many = choose(LOGITS[:1].expand(20_000, -1), SamplingConfig(temperature=1.0), [random])
    shares = many.bincount(minlength=4) / len(many)
    # 20,000 draws: a share's standard error is at most 0.0036.
    torch.testing.assert_close(shares, LOGITS[0].exp(), atol=0.015, rtol=0)


def test_a_row_that_draws_for_itself_draws_the_same_in_any_batch() -> None:
    sampling, many = SamplingConfig(temperature=1.0), LOGITS.repeat(20, 1)
    together = choose(many, sampling, [torch.Generator().manual_seed(row) for row in range(40)]).tolist()
    alone = [int(choose(many[row : row + 1], sampling, [torch.Generator().manual_seed(row)])) for row in range(40)]
    assert together == alone
    assert len(set(together[::2])) > 2  # of one row, drawn twenty times


def test_a_low_temperature_favours_the_best_token() -> None:
    assert draws(SamplingConfig(temperature=0.01)) == {0}


@pytest.mark.parametrize(
    "wrong", [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}]
)
def test_a_value_out_of_range_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(wrong))} is {next(iter(wrong.values()))}; it must be"):
        SamplingConfig(**wrong)  # type: ignore[arg-type]
