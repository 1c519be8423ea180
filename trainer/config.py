# SPDX-License-Identifier: Apache-2.0
"""How long, how much at once, and where to: the part of a run that is neither model nor data nor optimizer."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from model.errors import ConfigError
from model.layers.embedding import TablePlacement
from model.layers.kernel import AttentionKernel
from model.recompute import RecomputeConfig, TextRecompute
from trainer.average import AverageConfig
from trainer.loss import CHUNK_BYTES
from trainer.stopping import EarlyStoppingConfig


class Precision(StrEnum):
    """The dtype of the weights that are computed with. float16 is not offered: Gemma 3n overflows its range."""

    fp32 = "fp32"
    bf16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to load weights in."""
        return {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}[self]


class Device(StrEnum):
    """What to train on: the accelerator if there is one, or the processor in any case."""

    auto = "auto"
    cpu = "cpu"


class WandbMode(StrEnum):
    """Whether figures also go to Weights & Biases, and whether over the network."""

    off = "off"
    offline = "offline"
    online = "online"


# What changes how numbers are rounded, not which are computed: free to change, and the change is told.
ROUNDING = ("attention", "batch_size", "compile", "gradient_accumulation", "loss_chunk_bytes")
# What a resumed run may change: where it runs, what it tells, what it keeps and when it ends early, not what it
# computes. batch_size and gradient_accumulation are checked together with the number of processes: rows per step must
# stay. epochs are told by the steps that they come to.
FREE_TO_CHANGE = frozenset({
    *ROUNDING, "output", "epochs", "max_minutes", "device", "threads", "recompute", "per_layer_table", "log_every",
    "eval_every", "eval_before", "eval_batch_size", "monitor", "early_stopping", "save_every", "keep_checkpoints",
    "keep_best", "resume", "wandb", "wandb_project", "tensorboard",
})  # fmt: skip


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """One training run.

    ``precision`` is that of the frozen weights; whatever is trained stays float32, because the updates of
    bfloat16 weights would be lost to rounding. There is no autocast.

    Raises:
        ConfigError: A value is out of its range.
    """

    output: Path  # directory of the run: log, checkpoints, curves
    batch_size: int  # rows in a micro-batch of one process, of several examples each where data.packing is on
    max_steps: int | None = None  # optimizer steps; null = as epochs say
    epochs: float | None = None  # times through the data; with max_steps too, the earlier end is the run's
    max_minutes: float | None = None  # of training in all; the run is saved, and goes on if it is resumed with more
    gradient_accumulation: int = 1  # micro-batches in a step
    max_grad_norm: float | None = 1.0  # global norm to clip at; null = no clipping
    seed: int = 0  # order of the data, specs of each step, dropout
    precision: Precision = Precision.fp32
    device: Device = Device.auto
    attention: AttentionKernel = AttentionKernel.auto  # what computes it: auto, dense, documents, flex
    threads: int | None = None  # processor threads of torch; null = its own choice
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)  # activations not kept but made again
    compile: bool = False  # the decoder's layers by torch.compile: faster steps, a slow first one; rounding differs
    per_layer_table: TablePlacement = TablePlacement.device  # or host, mmap: rows come as needed; not trained then
    loss_chunk_bytes: int = CHUNK_BYTES  # of memory for scores: more is faster on an accelerator; rounding differs
    log_every: int = 10  # steps
    eval_every: int | None = None  # steps; null = only after the last step
    eval_before: bool = True  # also ahead of the first step, to tell what training changed
    eval_batch_size: int | None = None  # examples; null = batch_size
    monitor: str | None = None  # the size whose validation loss tells what is best; null = the mean over all measured
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)  # by .patience, in evaluations
    average: AverageConfig = field(default_factory=AverageConfig)  # by .decay; it is then what is measured and kept
    save_every: int | None = None  # steps; null = only after the last step
    keep_checkpoints: int = 2  # the newest ones stay
    keep_best: bool = False  # that of the lowest validation loss stays too, as best in the run's directory
    resume: bool = False  # go on with the run in output, from its newest checkpoint
    wandb: WandbMode = WandbMode.off
    tensorboard: bool = False  # event files in the run's directory, too; needs the extra of that name
    wandb_project: str = "matslice"

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation", "threads", "log_every",
                     "eval_every", "eval_batch_size", "save_every", "keep_checkpoints",
                     "loss_chunk_bytes"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"trainer.{name} is {value}; it must be at least 1")
        for name in ("epochs", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"trainer.{name} is {value}; it must be a number above 0, or null")
        if self.max_steps is None and self.epochs is None:
            raise ConfigError(
                "trainer.max_steps and trainer.epochs are both null, so the run would have no end; give one of them"
                " (learning rates depend on it; trainer.max_minutes only interrupts)"
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ConfigError(f"trainer.max_grad_norm is {self.max_grad_norm}; it must be positive, or null")
        if self.attention is AttentionKernel.flex and (self.device is Device.cpu or not torch.cuda.is_available()):
            raise ConfigError(
                "trainer.attention is flex, of which torch has gradients on CUDA GPUs only, and there is none to train"
                " on; set trainer.attention=auto"
            )
        if self.compile and self.recompute.text is TextRecompute.selective:
            raise ConfigError(
                "trainer.compile is on, but trainer.recompute.text is selective, which has to see every operation of a"
                " layer, and those of compiled code it does not; set trainer.recompute.text=full, every or none"
            )
        if self.seed < 0:
            raise ConfigError(f"trainer.seed is {self.seed}; it must not be negative")

    @property
    def num_steps(self) -> int:
        """The steps of the whole run, once ``with_steps`` has told them."""
        assert self.max_steps is not None, "epochs are counted in steps when the data is known"
        return self.max_steps

    def with_steps(self, steps_per_epoch: float) -> TrainerConfig:
        """The same with ``max_steps`` given, now that the data is known; the last epoch is a whole one."""
        if self.epochs is None:
            return self
        # A product like 3 × 33.1 may come out a little above the whole number that it is.
        ends = [max(1, math.ceil(round(self.epochs * steps_per_epoch, 6)))]
        return dataclasses.replace(self, max_steps=min(ends if self.max_steps is None else [*ends, self.max_steps]))

    @property
    def identity(self) -> dict[str, Any]:
        """The values that a resumed run must share with the one it goes on with."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in FREE_TO_CHANGE}
