# SPDX-License-Identifier: Apache-2.0
"""The processes and devices of a run, as Accelerate sees them. Counting and sharding are our own.

Several processes are started by ``torchrun --nproc-per-node N -m …`` or by ``accelerate launch --multi_gpu
--num_processes N -m …``, the latter also where there is no GPU: with ``--cpu``, Accelerate 1.15 starts a
single process whatever number it is given.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from model.errors import ConfigError
from trainer.config import Device, TrainerConfig
from trainer.optimizers.config import OptimizerName
from trainer.zero_config import USING_ZERO, ZERO, asked_of_zero, zero_config

# What the loop is written for: a whole model in every process, or one that FSDP2 divides up. Dividing is ours to do,
# and so is having DeepSpeed do it, of which Accelerate is told nothing.
SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP)
SHARDING = "ACCELERATE_USE_FSDP"
REWRITING = ("ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG")
COMPILING = "ACCELERATE_DYNAMO_BACKEND"
# What else of FSDP the environment may ask for, and is not done by those means.
NOT_OF_SHARDING = {
    "FSDP_OFFLOAD_PARAMS": "parameters stay on the device; take more processes, or trainer.per_layer_table=host",
    "FSDP_ACTIVATION_CHECKPOINTING": "set trainer.recompute.text=full in its place",
}
# What a launcher tells each process; DeepSpeed would look for them elsewhere, in what need not be installed.
JOINING = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Optimizers that do not know shares: torch's fails at its first step, bitsandbytes' counts blocks over whole tensors.
UNDIVIDED = frozenset({OptimizerName.adafactor, OptimizerName.adamw_8bit})


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
    refuse_unlike_zero(config, may_leave_unused=may_leave_unused)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with unsaid(USING_ZERO):
        accelerator = Accelerator(
            mixed_precision="no",  # weights have the dtype they are to be computed in; see TrainerConfig
            # Said outright where there is nothing else: left to itself, Accelerate would not join such processes.
            cpu=config.device is Device.cpu or not torch.accelerator.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=may_leave_unused)],
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise ConfigError(
            f"Accelerate is set up for {accelerator.distributed_type.value}, which does not train here: launch with"
            f" 'accelerate launch --multi_gpu', or torchrun (allowed: {', '.join(SUPPORTED)})"
        )
    if (launched := num_launched()) != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but {accelerator.num_processes} joined on {accelerator.device};"
            " set trainer.device=cpu, or launch one per GPU"
        )
    torch.manual_seed(config.seed + accelerator.process_index)
    return accelerator


def refuse_environment() -> None:
    """Raise ConfigError if Accelerate's environment variables ask for what the loop is not written for.

    They come from ``accelerate launch`` and its config file. Its gradient accumulation and mixed precision are
    not among them: the loop uses neither.
    """
    for name in REWRITING:
        if is_set(name):
            raise ConfigError(
                f"the environment has {name}={os.environ[name]}, which does not train here: launch with --config_file"
                " conf/accelerate/fsdp2.yaml ('accelerate launch --use_fsdp --fsdp_version 2') for a model that is"
                " divided up among processes, or with conf/accelerate/ddp.yaml ('accelerate launch --multi_gpu') for a"
                " whole one in each"
            )
    if is_zero() and is_sharded():
        raise ConfigError(
            f"the environment has both {SHARDING} and {USING_ZERO}, but what is divided up is so by one of them: unset"
            " the other, or launch with --config_file conf/accelerate/fsdp2.yaml or deepspeed.yaml"
        )
    if is_zero():
        asked_of_zero()
        if absent := [name for name in JOINING if name not in os.environ]:
            raise ConfigError(
                f"the environment has {USING_ZERO}=true, but not {', '.join(absent)}, as a launcher sets them: launch"
                " with 'accelerate launch --config_file conf/accelerate/deepspeed.yaml', also for one process, or unset"
                f" {USING_ZERO}"
            )
    if is_sharded():
        if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
            raise ConfigError(
                f"the environment has {SHARDING} with FSDP_VERSION={version}; only FSDP2 trains here: launch with"
                " 'accelerate launch --use_fsdp --fsdp_version 2', or --config_file conf/accelerate/fsdp2.yaml"
            )
        for name, instead in NOT_OF_SHARDING.items():
            if is_set(name):
                raise ConfigError(f"the environment has {name}={os.environ[name]}, which is not done here: {instead}")
    backend = os.environ.get(COMPILING, "no")
    if backend.lower() != "no":
        raise ConfigError(
            f"the environment has {COMPILING}={backend}; the model is not compiled by that: unset it, or launch with"
            " 'accelerate launch --dynamo_backend no', and set trainer.compile=true to have its layers compiled"
        )


@contextlib.contextmanager
def unsaid(name: str) -> Iterator[None]:
    """Keep a variable of the environment from Accelerate, which then joins processes as it does for whole models."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def is_set(name: str) -> bool:
    """Whether a variable of the environment says yes."""
    return os.environ.get(name, "false").lower() in ("true", "1")


def is_sharded() -> bool:
    """Whether the model is divided up among processes, as their launcher says."""
    return is_set(SHARDING)


def is_zero() -> bool:
    """Whether the optimizer's states are divided up among processes by DeepSpeed, as their launcher says."""
    return is_set(USING_ZERO)


def zero_stage() -> int:
    """Which stage of ZeRO divides the optimizer's states up, 0 where none does."""
    return asked_of_zero()[ZERO]["stage"] if is_zero() else 0


def is_resharded_after_forward() -> bool:
    """Whether a layer that is divided up is so again as soon as it has run, as the launcher says."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "0")


def refuse_undivided(optimizer: OptimizerName) -> None:
    """Raise ConfigError if something is divided up and the optimizer cannot be; known before weights are read."""
    if is_zero() and optimizer is not OptimizerName.adamw:
        raise ConfigError(
            f"optim.name is {optimizer}, which has to see tensors, and DeepSpeed's ZeRO shows its optimizer none"
            f" ({USING_ZERO}); set optim.name={OptimizerName.adamw}, or launch with --config_file"
            " conf/accelerate/fsdp2.yaml or ddp.yaml"
        )
    if is_sharded() and optimizer in UNDIVIDED:
        allowed = ", ".join(name for name in OptimizerName if name not in UNDIVIDED)
        raise ConfigError(
            f"optim.name is {optimizer}, which does not work on parameters that are divided up among processes"
            f" ({SHARDING}); with FSDP2 choose one of {allowed}, or launch with 'accelerate launch --multi_gpu'"
        )


def refuse_unused(*, may_leave_unused: bool) -> None:
    """Raise ConfigError if what is trained may be left out of a step, and DeepSpeed would move it all the same."""
    if may_leave_unused:
        raise ConfigError(
            f"the environment has {USING_ZERO}=true, but what is trained may be without a gradient in a step: layers"
            " that a sub-model of sizes skips, or towers and embedders without media. DeepSpeed's ZeRO would move it"
            " all the same, or wait for it: train sub-models with all layers (narrower ones do), leave towers and"
            " embedders out (freeze, adapter.targets), or launch with --config_file conf/accelerate/fsdp2.yaml"
        )


def refuse_unlike_zero(config: TrainerConfig, *, may_leave_unused: bool) -> None:
    """Raise ConfigError if DeepSpeed divides states up, and the run is not as it has them; known before data is read.

    Args:
        config: What DeepSpeed's config may contradict.
        may_leave_unused: As in ``start``.
    """
    if is_zero():
        refuse_unused(may_leave_unused=may_leave_unused)
        zero_config(config, num_launched())


def num_launched() -> int:
    """How many processes there are, as their launcher says; known before any of them has joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_launched() -> bool:
    """Whether this process speaks for all, as its launcher says; known before any of them has joined."""
    return os.environ.get("RANK", "0") == "0"


def rows_per_step(config: TrainerConfig, num_processes: int) -> int:
    """Rows of data that so many processes together take in one optimizer step."""
    return num_processes * config.batch_size * config.gradient_accumulation
