# SPDX-License-Identifier: Apache-2.0
"""The figures of a run: summed up between two log lines, and reported as one flat record.

A record is a dictionary of JSON values. ``kind`` says which: ``train`` for the steps since the last such
record, ``validation`` for one sub-model after a step, ``start`` for what a run is made of, each time it is begun or
resumed. Losses are nats per supervised token.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

Record = dict[str, Any]


@dataclass(kw_only=True)
class StepFigures:
    """What one optimizer step did, over all processes.

    ``loss_sums`` holds, for each spec of the step by name, the loss summed over ``supervised_tokens``.
    """

    loss_sums: dict[str, float]
    supervised_tokens: int
    tokens: int
    gradient_norm: float  # before clipping
    learning_rate: float

    @property
    def loss(self) -> float:
        """The mean over the supervised tokens and the specs."""
        return sum(self.loss_sums.values()) / (self.supervised_tokens * len(self.loss_sums))


@dataclass
class Clock:
    """Wall time since ``first_step``, where a run began or was resumed; evaluating and saving count."""

    first_step: int = 0
    since: float = field(default_factory=time.perf_counter)

    def seconds_left(self, step: int, max_steps: int) -> float:
        """How long it takes from ``step`` to ``max_steps`` if it goes on as it went so far."""
        return (max_steps - step) * (time.perf_counter() - self.since) / (step - self.first_step)


@dataclass
class Window:
    """Steps since the last record, and how fast they went."""

    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_tokens: dict[str, int] = field(default_factory=dict)
    supervised_tokens: int = 0
    tokens: int = 0
    num_steps: int = 0
    seconds: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        """Begin to measure time; what happened since the last step (evaluation, saving) does not count."""
        self.since = time.perf_counter()

    def add(self, figures: StepFigures) -> None:
        """Take in a step, and the time since ``start``."""
        for name, loss_sum in figures.loss_sums.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + loss_sum
            self.loss_tokens[name] = self.loss_tokens.get(name, 0) + figures.supervised_tokens
        self.supervised_tokens += figures.supervised_tokens
        self.tokens += figures.tokens
        self.num_steps += 1
        self.seconds += time.perf_counter() - self.since

    def record(self, *, step: int, epoch: float, eta_seconds: float, last: StepFigures, device: torch.device) -> Record:
        """Everything since the last record.

        ``loss`` is over all specs alike and ``loss/NAME`` over the steps that trained NAME; ``tokens`` of a
        step count once, however many specs it trained.
        """
        seconds = max(self.seconds, 1e-9)
        by_spec = {f"loss/{name}": total / self.loss_tokens[name] for name, total in self.loss_sums.items()}
        return {
            "kind": "train",
            "step": step,
            "epoch": epoch,
            "loss": sum(self.loss_sums.values()) / sum(self.loss_tokens.values()),
            **by_spec,
            "learning_rate": last.learning_rate,
            "gradient_norm": last.gradient_norm,
            "tokens_per_second": self.tokens / seconds,
            "supervised_tokens_per_second": self.supervised_tokens / seconds,
            "seconds_per_step": seconds / self.num_steps,
            "eta_seconds": eta_seconds,
            "memory_bytes": peak_memory_bytes(device),
        }


def numbers_of(record: Record) -> dict[str, float]:
    """The numbers of a record by curve: under its kind, those of a validation also under its spec."""
    group = "/".join(str(record[key]) for key in ("kind", "spec") if key in record)
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
    return {f"{group}/{key}": value for key, value in numbers.items()}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: what the allocator held on a CUDA device, else the process's resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
