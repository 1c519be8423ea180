# SPDX-License-Identifier: Apache-2.0
"""Why a run ends: its steps are done, evaluations gain nothing, its time is up, or somebody asked for it.

A signal is only noted; the step at hand is finished and saved, and then all processes leave together.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import FrameType

from model.errors import ConfigError

SAME_REQUEST_SECONDS = 1.0  # launchers hand on the SIGINT that a terminal has already sent to every process


class Ending(StrEnum):
    """Why a run came to an end for now."""

    done = "done"  # max_steps or epochs
    early = "early"  # trainer.early_stopping
    minutes = "minutes"  # trainer.max_minutes
    sigint = "sigint"
    sigterm = "sigterm"

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that ended it, if one did."""
        return {Ending.sigint: signal.SIGINT, Ending.sigterm: signal.SIGTERM}.get(self)


@dataclass(kw_only=True, slots=True)
class EarlyStoppingConfig:
    """The run ends when evaluations no longer find a lower validation loss.

    Raises:
        ConfigError: A value is out of its range.
    """

    patience: int | None = None  # evaluations in a row without gain that end the run; null = none do
    min_delta: float = 0.0  # nats by which the loss has to fall to be a gain

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"trainer.early_stopping.patience is {self.patience}; it must be at least 1")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ConfigError(f"trainer.early_stopping.min_delta is {self.min_delta}; it must be 0 or more")


@dataclass
class Requests:
    """The signals that this process has been sent since it listens."""

    found: dict[int, float] = field(default_factory=dict)  # by signal, when it came first
    several_processes: bool = False

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Remember a signal. SIGINT after another signal ends the process at once, as it does anywhere else."""
        now = time.monotonic()
        again = self.found and number == signal.SIGINT
        if again and not (self.several_processes and now - min(self.found.values()) < SAME_REQUEST_SECONDS):
            raise KeyboardInterrupt
        self.found.setdefault(number, now)

    def has(self, ending: Ending) -> bool:
        """Whether the signal of this ending came."""
        return ending.signal in self.found

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM within the block; only a process's main thread is told of them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # What nohup and shells had ignored for a process in the background stays ignored.
        heard = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        try:
            for number in heard:
                signal.signal(number, self.note)
            yield
        finally:
            for number, handler in heard.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
