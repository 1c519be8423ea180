# SPDX-License-Identifier: Apache-2.0
"""The learning rate of a step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError
from trainer.schedule import Decay, Schedule, ScheduleConfig


def rates(decay: Decay, *, warmup_steps: int = 2, final_share: float = 0.1, max_steps: int = 10) -> list[float]:
    config = ScheduleConfig(decay=decay, warmup_steps=warmup_steps, final_share=final_share)
    schedule = Schedule(config=config, learning_rate=1.0, max_steps=max_steps)
    return [schedule.at(step) for step in range(max_steps)]


@pytest.mark.parametrize("decay", Decay)
def test_the_warm_up_rises_evenly_to_the_peak(decay: Decay) -> None:
    assert rates(decay)[:3] == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_constant_rate_stays() -> None:
    assert rates(Decay.constant)[2:] == [1.0] * 8


def test_linear_decay_would_reach_its_share_in_the_step_after_the_last() -> None:
    assert rates(Decay.linear)[-2:] == pytest.approx([0.1 + 0.9 * 2 / 8, 0.1 + 0.9 / 8])


def test_cosine_decay_is_half_way_down_in_the_middle() -> None:
    assert rates(Decay.cosine)[6] == pytest.approx(0.1 + 0.9 / 2)


@given(decay=st.sampled_from(list(Decay)), max_steps=st.integers(1, 60), share=st.floats(0, 1), warm=st.floats(0, 0.99))
def test_the_rate_is_positive_in_every_step_and_never_above_the_peak(
    decay: Decay, max_steps: int, share: float, warm: float
) -> None:
    found = rates(decay, warmup_steps=int(warm * max_steps), final_share=share, max_steps=max_steps)
    assert all(0 < rate <= 1 + 1e-12 for rate in found)  # rounding


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps is 11, but the run has 10 steps"):
        rates(Decay.cosine, warmup_steps=11)
