# SPDX-License-Identifier: Apache-2.0
"""When a run evaluates and when it ends: functions of how far it is and what it was told."""

from __future__ import annotations

from trainer.config import TrainerConfig
from trainer.state import TrainState
from trainer.stopping import Ending


def is_due(step: int, every: int | None) -> bool:
    """Whether something done every so many steps is done after ``step``."""
    return every is not None and step % every == 0


def is_evaluated(state: TrainState, config: TrainerConfig) -> bool:
    """Whether the validation rows are measured after the steps taken so far."""
    return state.step > 0 and (state.step >= config.num_steps or is_due(state.step, config.eval_every))


def lacks_evaluation(state: TrainState, config: TrainerConfig) -> bool:
    """Whether a signal left no time for the evaluation after the last step."""
    return is_evaluated(state, config) and state.evaluated_at < state.step


def why_end(state: TrainState, config: TrainerConfig) -> Ending | None:
    """Why a run in this state takes no further step; None if it does."""
    patience, minutes = config.early_stopping.patience, config.max_minutes
    if state.step >= config.num_steps:
        return Ending.done
    if patience is not None and state.evaluations_without_gain >= patience:
        return Ending.early
    if minutes is not None and state.seconds >= minutes * 60:
        return Ending.minutes
    return None


def nothing_left(state: TrainState, config: TrainerConfig, *, measures: bool) -> Ending | None:
    """Why a run that is resumed in this state has nothing to do; None if it has.

    Args:
        measures: Whether there are rows to measure on.
    """
    return None if measures and lacks_evaluation(state, config) else why_end(state, config)
