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
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from model.errors import ConfigError
from trainer.config import Device, TrainerConfig

# What the loop is written for: a whole model in every process. Anything else would divide up or rewrite it.
SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
REWRITING = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
COMPILING = "ACCELERATE_DYNAMO_BACKEND"


def start(config: TrainerConfig, *, may_leave_unused: bool) -> Accelerator:
    """Join the other processes, choose the device, seed torch.

    Each process has its own seed, so that dropout differs between them. Weights must not depend on it: those
    drawn at random are made equal to the first process's when the model is prepared.

    Args:
        may_leave_unused: Whether a step may leave trained parameters without a gradient in some process: layers that
            it skips, a tower for which no row has anything. Processes then have to look for them in every step, or
            they would wait for each other forever; it costs time, so only then.

    Raises:
        ConfigError: There are several processes, but nothing that would join them; or Accelerate is set up, by its
            launcher or its environment variables, to do what this loop is not written for.
    """
    refuse_environment()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = Accelerator(
        mixed_precision="no",  # weights have the dtype they are to be computed in; see TrainerConfig
        # Said outright where there is nothing else: left to itself, Accelerate would not join such processes.
        cpu=config.device is Device.cpu or not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=may_leave_unused)],
    )
    if accelerator.distributed_type not in SUPPORTED:
        raise ConfigError(
            f"Accelerate is set up for {accelerator.distributed_type.value}; each process trains a whole model here:"
            f" launch with 'accelerate launch --multi_gpu', or torchrun (allowed: {', '.join(SUPPORTED)})"
        )
    if (launched := num_launched()) != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but {accelerator.num_processes} joined on {accelerator.device};"
            " set trainer.device=cpu, or launch one per GPU"
        )
    torch.manual_seed(config.seed + accelerator.process_index)
    return accelerator


def refuse_environment() -> None:
    """Raise ConfigError if Accelerate's environment variables would divide up or compile the model.

    They come from ``accelerate launch`` and its config file. Its gradient accumulation and mixed precision are
    not among them: the loop uses neither.
    """
    for name in REWRITING:
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise ConfigError(
                f"the environment has {name}={os.environ[name]}; each process trains a whole model here: unset it, or"
                " launch with 'accelerate launch --multi_gpu' and without a config file that asks for it"
            )
    backend = os.environ.get(COMPILING, "no")
    if backend.lower() != "no":
        raise ConfigError(
            f"the environment has {COMPILING}={backend}; the model is not compiled here: unset it, or launch with"
            " 'accelerate launch --dynamo_backend no'"
        )


def num_launched() -> int:
    """How many processes there are, as their launcher says; known before any of them has joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_launched() -> bool:
    """Whether this process speaks for all, as its launcher says; known before any of them has joined."""
    return os.environ.get("RANK", "0") == "0"


def rows_per_step(config: TrainerConfig, num_processes: int) -> int:
    """Rows of data that so many processes together take in one optimizer step."""
    return num_processes * config.batch_size * config.gradient_accumulation
