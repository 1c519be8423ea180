# SPDX-License-Identifier: Apache-2.0
"""How an optimizer is written down."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum

from model.errors import ConfigError

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Kingma & Ba, arXiv 1412.6980


class OptimizerName(StrEnum):
    """The optimizers there are."""

    adamw = "adamw"
    adamw_bf16_states = "adamw_bf16_states"  # moments, and weights if they are, in bfloat16, rounded at random
    adamw_8bit = "adamw_8bit"  # moments in 8 bits, by bitsandbytes; needs CUDA
    adafactor = "adafactor"  # no first moment; of the second, row and column sums


@dataclass(kw_only=True, slots=True)
class GroupConfig:
    """What some parameters have of their own; what is null they have like all others.

    Raises:
        ConfigError: A value is out of its range, or the group changes nothing.
    """

    match: str  # regular expression, found anywhere in a parameter's published name
    learning_rate: float | None = None  # the peak; the schedule scales it
    learning_rate_scale: float | None = None  # times optim.learning_rate, in place of a peak of its own
    weight_decay: float | None = None  # of all that match, vectors too

    def __post_init__(self) -> None:
        where = f"optim.groups: '{self.match}'"
        try:
            re.compile(self.match)
        except re.error as error:
            raise ConfigError(f"{where} is not a regular expression ({error}); mend match") from None
        if self.learning_rate is not None and self.learning_rate_scale is not None:
            raise ConfigError(f"{where} has both learning_rate and learning_rate_scale; leave one of them out")
        for name in ("learning_rate", "learning_rate_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{where}: {name} is {value}; it must be positive and finite")
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"{where}: weight_decay is {self.weight_decay}; it must not be negative")
        if self.learning_rate is None and self.learning_rate_scale is None and self.weight_decay is None:
            raise ConfigError(f"{where} changes nothing; give learning_rate, learning_rate_scale or weight_decay")

    def scale(self, learning_rate: float) -> float:
        """What the learning rate of a step is multiplied by, if the peak of all others is ``learning_rate``."""
        if self.learning_rate is not None:
            return self.learning_rate / learning_rate
        return 1.0 if self.learning_rate_scale is None else self.learning_rate_scale


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """The optimizer and its constants.

    Raises:
        ConfigError: A value is out of its range, or is given to an optimizer that does not have it.
    """

    learning_rate: float  # the peak; the schedule scales it
    name: OptimizerName = OptimizerName.adamw
    betas: list[float] = field(default_factory=lambda: list(BETAS))  # not of adafactor
    epsilon: float = EPSILON  # not of adafactor
    weight_decay: float = 0.0
    decay_vectors: bool = False  # whether weight_decay is for norms, biases and other vectors, too
    fused: bool = True  # adamw: one pass over memory; false = torch's plain loops, whose last bits differ
    rounding_seed: int = 0  # adamw_bf16_states
    lora_plus_ratio: float | None = None  # how much faster an adapter's B learns than its A; null = as fast
    groups: list[GroupConfig] = field(default_factory=list)  # the first that matches a parameter counts

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"optim.learning_rate is {self.learning_rate}; it must be positive and finite")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas is {list(self.betas)}; it must be two numbers in [0, 1)")
        if not self.epsilon > 0:
            raise ConfigError(f"optim.epsilon is {self.epsilon}; it must be positive")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"optim.weight_decay is {self.weight_decay}; it must not be negative")
        if self.rounding_seed < 0:
            raise ConfigError(f"optim.rounding_seed is {self.rounding_seed}; it must not be negative")
        ratio = self.lora_plus_ratio
        if ratio is not None and not (math.isfinite(ratio) and ratio > 0):
            raise ConfigError(f"optim.lora_plus_ratio is {ratio}; it must be positive and finite, such as 16, or null")
        if self.name is OptimizerName.adafactor and (tuple(self.betas), self.epsilon) != (BETAS, EPSILON):
            raise ConfigError("optim.betas or optim.epsilon is set, but adafactor has neither; leave them out")
