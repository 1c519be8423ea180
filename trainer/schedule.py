# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a pure function of the step: nothing to save, nothing to step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from model.errors import ConfigError

USUAL_WARMUP_STEPS, LARGEST_USUAL_SHARE = 10, 0.2  # where no warm-up is given: so many steps, or that of a short run


class Decay(StrEnum):
    """How the learning rate falls after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"  # warm-up, stable, decay: stays until near the end, then falls in a straight line


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Warm-up, then decay to a share of the peak.

    Raises:
        ConfigError: A value is out of its range, or is given to a decay that does not have it.
    """

    decay: Decay = Decay.cosine
    # null, where warmup_share is null too: 10, but at most a fifth of a run; none for constant
    warmup_steps: int | None = None
    warmup_share: float | None = None  # of the run's steps, in place of warmup_steps
    decay_share: float | None = None  # of the run's steps, in which wsd falls; for wsd alone
    final_share: float = 0.0  # of the peak learning rate, reached after the last step; not for constant

    def __post_init__(self) -> None:
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}; it must not be negative")
        if self.warmup_share is not None and not 0 <= self.warmup_share <= 1:
            raise ConfigError(f"schedule.warmup_share is {self.warmup_share}; it must be a share in [0, 1], or null")
        if self.warmup_share is not None and self.warmup_steps is not None:
            raise ConfigError(
                f"schedule.warmup_steps is {self.warmup_steps} and schedule.warmup_share {self.warmup_share}; a warm-up"
                " is given by one of them, set the other to null"
            )
        if not 0 <= self.final_share <= 1:
            raise ConfigError(f"schedule.final_share is {self.final_share}; it must be a share in [0, 1]")
        if self.decay is Decay.constant and self.final_share != 0:
            raise ConfigError(
                f"schedule.final_share is {self.final_share}, but {self.decay} falls to none; set it to 0, or set"
                f" schedule.decay={Decay.linear}"
            )
        if self.decay is Decay.wsd:
            if self.decay_share is None or not 0 < self.decay_share <= 1:
                raise ConfigError(
                    f"schedule.decay_share is {self.decay_share}; wsd falls in a share of the run in (0, 1], such as"
                    " 0.2"
                )
        elif self.decay_share is not None:
            raise ConfigError(
                f"schedule.decay_share is {self.decay_share}, but {self.decay} has none; set it to null, or set"
                f" schedule.decay={Decay.wsd}"
            )

    def num_warmup_steps(self, max_steps: int) -> int:
        """Steps of the warm-up in a run of ``max_steps``."""
        if self.warmup_share is not None:
            return round(self.warmup_share * max_steps)
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.decay is Decay.constant:
            return 0
        room = max_steps if self.decay_share is None else max_steps - self.num_falling_steps(max_steps)
        return min(USUAL_WARMUP_STEPS, math.floor(LARGEST_USUAL_SHARE * max_steps), room)

    def num_decay_steps(self, max_steps: int) -> int:
        """Steps in which the rate falls, at the end of a run of ``max_steps``."""
        rest = max_steps - self.num_warmup_steps(max_steps)
        if self.decay_share is None:
            return rest
        falling = self.num_falling_steps(max_steps)
        # Two shares of one whole may both be rounded up.
        fit = self.warmup_share is not None and self.warmup_share + self.decay_share <= 1
        return min(falling, rest) if fit else falling

    def num_falling_steps(self, max_steps: int) -> int:
        """Steps that wsd's share comes to."""
        assert self.decay_share is not None
        return max(1, round(self.decay_share * max_steps))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule for a run of known length; ``at(step)`` is the learning rate of a step counted from 0.

    Raises:
        ConfigError: Warm-up, or warm-up and wsd's decay, are longer than the run.
    """

    config: ScheduleConfig
    learning_rate: float
    max_steps: int

    def __post_init__(self) -> None:
        warmup = self.config.num_warmup_steps(self.max_steps)
        if warmup > self.max_steps:
            raise ConfigError(
                f"schedule.warmup_steps is {warmup}, but the run has {self.max_steps} steps"
                " (trainer.max_steps); warm up for fewer, or train longer"
            )
        falling = self.config.num_decay_steps(self.max_steps)
        if warmup + falling > self.max_steps:
            raise ConfigError(
                f"schedule: the warm-up takes {warmup} steps and the decay {falling} (decay_share"
                f" {self.config.decay_share}), but the run has {self.max_steps} (trainer.max_steps); shorten one of"
                " them, or train longer"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must share: the values, a warm-up that was not given as the steps that it comes to."""
        values = dataclasses.asdict(self.config)
        if self.config.warmup_share is None:
            values["warmup_steps"] = self.config.num_warmup_steps(self.max_steps)
        return values

    def at(self, step: int) -> float:
        """The learning rate of ``step``, in ``range(max_steps)``: never 0, so that no step is for nothing.

        Source of wsd: Hu et al., MiniCPM, arXiv 2404.06395; in a straight line as in Hägele et al., arXiv 2405.18392.
        """
        warmup = self.config.num_warmup_steps(self.max_steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        falling = self.config.num_decay_steps(self.max_steps)
        done = max(0, step - (self.max_steps - falling)) / falling
        floor = self.config.final_share
        match self.config.decay:
            case Decay.constant:
                share = 1.0
            case Decay.linear | Decay.wsd:
                share = floor + (1 - floor) * (1 - done)
            case Decay.cosine:
                share = floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * share
