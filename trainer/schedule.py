# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a pure function of the step: nothing to save, nothing to step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from model.errors import ConfigError


class Decay(StrEnum):
    """How the learning rate falls after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Warm-up, then decay to a share of the peak.

    Raises:
        ConfigError: A value is out of its range.
    """

    decay: Decay = Decay.cosine
    warmup_steps: int = 0
    final_share: float = 0.0  # of the peak learning rate, reached after the last step; not for constant

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}; it must not be negative")
        if not 0 <= self.final_share <= 1:
            raise ConfigError(f"schedule.final_share is {self.final_share}; it must be a share in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule for a run of known length; ``at(step)`` is the learning rate of a step counted from 0.

    Raises:
        ConfigError: The warm-up is longer than the run.
    """

    config: ScheduleConfig
    learning_rate: float
    max_steps: int

    def __post_init__(self) -> None:
        if self.config.warmup_steps > self.max_steps:
            raise ConfigError(
                f"schedule.warmup_steps is {self.config.warmup_steps}, but the run has {self.max_steps} steps"
                " (trainer.max_steps); warm up for fewer, or train longer"
            )

    def at(self, step: int) -> float:
        """The learning rate of ``step``, in ``range(max_steps)``: never 0, so that no step is for nothing."""
        warmup = self.config.warmup_steps
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / (self.max_steps - warmup)
        floor = self.config.final_share
        match self.config.decay:
            case Decay.constant:
                share = 1.0
            case Decay.linear:
                share = floor + (1 - floor) * (1 - done)
            case Decay.cosine:
                share = floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * share
