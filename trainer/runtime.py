# SPDX-License-Identifier: Apache-2.0
"""The processes and devices of a run, as Accelerate sees them. Counting and sharding are our own.

Several processes are started by ``torchrun --nproc-per-node N -m …`` or by ``accelerate launch --multi_gpu
--num_processes N -m …``, the latter also where there is no GPU: with ``--cpu``, Accelerate 1.15 starts a
single process whatever number it is given.
"""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from model.errors import ConfigError
from trainer.config import Device, TrainerConfig


def start(config: TrainerConfig, *, may_skip_layers: bool) -> Accelerator:
    """Join the other processes, choose the device, seed torch.

    Each process has its own seed, so that dropout differs between them. Weights must not depend on it: those
    drawn at random are made equal to the first process's when the model is prepared.

    Args:
        may_skip_layers: Whether a step may leave parameters without a gradient. Processes then have to look for
            them in every step, or they would wait for each other forever; it costs time, so only then.

    Raises:
        ConfigError: There are several processes, but nothing that would join them.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = Accelerator(
        mixed_precision="no",  # weights have the dtype they are to be computed in; see TrainerConfig
        # Said outright where there is nothing else: left to itself, Accelerate would not join such processes.
        cpu=config.device is Device.cpu or not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=may_skip_layers)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but {accelerator.num_processes} joined on {accelerator.device};"
            " set trainer.device=cpu, or launch one per GPU"
        )
    torch.manual_seed(config.seed + accelerator.process_index)
    return accelerator
