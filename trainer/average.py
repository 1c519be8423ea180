# SPDX-License-Identifier: Apache-2.0
"""A running average of what is trained: smoother than the newest weights, to be measured and kept beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import CheckpointError, ConfigError

EARLY, LATE = 1, 10  # the n-th update forgets as much as one of decay (1 + n) / (10 + n), as in TensorFlow's average


@dataclass(kw_only=True, slots=True)
class AverageConfig:
    """An exponential moving average of the trained parameters.

    Raises:
        ConfigError: A value is out of its range.
    """

    decay: float | None = None  # share of the average that an update keeps: 0.999 looks back 1,000; null = no average
    every: int = 1  # steps from one update to the next
    warmup: bool = True  # keep less in the first updates, so that a short run forgets what it began from

    def __post_init__(self) -> None:
        if self.decay is not None and not (math.isfinite(self.decay) and 0 <= self.decay < 1):
            raise ConfigError(f"trainer.average.decay is {self.decay}; it must be a share in [0, 1), such as 0.999")
        if self.every < 1:
            raise ConfigError(f"trainer.average.every is {self.every}; it must be at least 1 step")


class Average:
    """The average of parameters over the steps of a run, in float32, beginning at what they are now.

    The parameters must be where they are trained: averages live on the device that their parameters are on when
    this is made.

    Args:
        parameters: What is averaged, by name: usually all that requires a gradient.
        config: How fast old values are forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: AverageConfig) -> None:
        self.parameters = dict(parameters)
        assert config.decay is not None, "no average is asked for"
        self.config, self.decay = config, config.decay
        self.num_updates = 0
        self.is_applied = False
        self.averages = {name: parameter.detach().float().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after ``step`` steps, if it is time to."""
        assert not self.is_applied, "the parameters are the average"
        if step % self.config.every != 0:
            return
        decay = self.decay_at(self.num_updates)
        for name, average in self.averages.items():
            average.lerp_(self.parameters[name].detach().float(), 1 - decay)
        self.num_updates += 1

    def decay_at(self, update: int) -> float:
        """The share of the average that an update keeps; updates are counted from 0."""
        if not self.config.warmup:
            return self.decay
        return min(self.decay, (EARLY + update) / (LATE + update))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters be the average within the block; afterwards they are bit for bit what they were.

        The parameters' own tensors are written to, so that whatever refers to them sees the average. Needs memory
        for another copy of them. The state can be read and weights can be saved meanwhile; nothing may be trained.
        """
        assert not self.is_applied, "the parameters are the average already"
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.is_applied = True
        try:
            write(self.averages, self.parameters)
            yield
        finally:
            write(own, self.parameters)
            self.is_applied = False

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on; the tensors are the average's own, not copies."""
        return {"num_updates": self.num_updates, "averages": dict(self.averages)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave, bit for bit.

        Raises:
            CheckpointError: The state is not one of an average of these parameters.
        """
        found: Mapping[str, Tensor] = state.get("averages", {})
        if differing := sorted(found.keys() ^ self.averages.keys()):
            raise CheckpointError(
                f"average: the state has {len(found)} parameters, the run trains {len(self.averages)}, and"
                f" '{differing[0]}' is in one of them alone; go on with the run that wrote it"
            )
        for name, average in self.averages.items():
            if found[name].shape != average.shape or found[name].dtype != average.dtype:
                raise CheckpointError(
                    f"average: '{name}' has the shape {tuple(found[name].shape)} and is {found[name].dtype}, not"
                    f" {tuple(average.shape)} and {average.dtype}; go on with the run that wrote it"
                )
        for name, average in self.averages.items():
            average.copy_(found[name])
        self.num_updates = int(state["num_updates"])


@torch.no_grad()
def write(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy values into parameters, rounded to their dtype."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
