# SPDX-License-Identifier: Apache-2.0
"""The processes and devices of a run, as Accelerate sees them. Counting and sharding are our own."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from trainer.config import Device, TrainerConfig


def start(config: TrainerConfig, *, may_skip_layers: bool) -> Accelerator:
    """Join the other processes, choose the device, seed torch.

    Each process has its own seed, so that dropout differs between them. Weights must not depend on it: those
    drawn at random are made equal to the first process's when the model is prepared.

    Args:
        may_skip_layers: Whether a step may leave parameters without a gradient. Processes then have to look for
            them in every step, or they would wait for each other forever; it costs time, so only then.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = Accelerator(
        mixed_precision="no",  # weights have the dtype they are to be computed in; see TrainerConfig
        cpu=config.device is Device.cpu,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=may_skip_layers)],
    )
    torch.manual_seed(config.seed + accelerator.process_index)
    return accelerator
