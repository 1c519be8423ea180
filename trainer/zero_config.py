# SPDX-License-Identifier: Apache-2.0
"""What Accelerate's launcher asks of DeepSpeed, and what of it is handed on.

How states are divided up and exchanged is the user's to set: stage, buckets, overlap, offloading of the optimizer.
Batches, accumulation, clipping, precision, optimizer and learning rates are the loop's; what DeepSpeed's config says of
them has to be the same, or "auto". All that is asked for and would not be done is refused; DeepSpeed need not be
installed to know. Source: Rajbhandari et al., arXiv 1910.02054.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

from accelerate.utils import DeepSpeedPlugin

from model.errors import ConfigError
from trainer.config import TrainerConfig

USING_ZERO = "ACCELERATE_USE_DEEPSPEED"
ZERO, OFFLOADING, OFFLOADED_WEIGHTS = "zero_optimization", "offload_optimizer", "offload_param"
FSDP2_INSTEAD = "launch with --config_file conf/accelerate/fsdp2.yaml"
WHERE = "DeepSpeed's config (conf/accelerate/deepspeed.yaml, or the JSON file it names)"
# What is handed on of DeepSpeed's config, and of its section for ZeRO; the rest is refused, or of other stages.
HANDED_ON = frozenset({
    "communication_data_type", "comms_logger", "flops_profiler", "memory_breakdown", "steps_per_print",
    "wall_clock_breakdown", "zero_force_ds_cpu_optimizer",
})  # fmt: skip
ZERO_HANDED_ON = frozenset({
    "stage", "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm",
    "reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "use_multi_rank_bucket_allreduce", OFFLOADING,
})  # fmt: skip
OFFLOADING_HANDED_ON = frozenset({"device", "pin_memory"})
OF_OTHER_STAGES = ("stage3_", "sub_group_size")  # how what belongs to them alone begins
INSTEAD = {
    "optimizer": "the optimizer is optim's: leave the section out, and set optim.learning_rate and the like",
    "scheduler": "learning rates are schedule's: leave the section out, and set schedule=…",
    "fp16": "weights are computed with in the dtype they have: disable it, and set trainer.precision",
    "bf16": "weights are computed with in the dtype they have: disable it, and set trainer.precision",
    "amp": "weights are computed with in the dtype they have: disable it, and set trainer.precision",
    "torch_autocast": "weights are computed with in the dtype they have: disable it, and set trainer.precision",
    "activation_checkpointing": "leave the section out, and set trainer.recompute",
    "tensorboard": "leave the section out, and set trainer.tensorboard=true",
    "wandb": "leave the section out, and set trainer.wandb=online",
}
LEAVE_OUT = "leave it out"


def asked_of_zero() -> dict[str, Any]:
    """DeepSpeed's config as the launcher's variables and the file they may name have it.

    Raises:
        ConfigError: DeepSpeed is not installed, or its config cannot be read, or has what is not done here.
    """
    if not is_installed():
        raise ConfigError(
            f"the environment has {USING_ZERO}=true, but DeepSpeed is not installed; install it (pip install"
            f" 'matslice[deepspeed]'), or {FSDP2_INSTEAD}, which needs nothing else"
        )
    try:
        asked = copy.deepcopy(DeepSpeedPlugin().deepspeed_config)
    except (AttributeError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{WHERE} cannot be read: {error}") from None
    refuse_stage(asked[ZERO])
    owned = {name for name, _, _ in owned_values(None, 1)}
    for key, value in asked.items():
        if key not in HANDED_ON | owned | {ZERO} and not is_off(value):
            raise ConfigError(f"{WHERE} has {key}={value}, which is not done here: {INSTEAD.get(key, LEAVE_OUT)}")
    for key, value in asked[ZERO].items():
        known = key in ZERO_HANDED_ON or key == OFFLOADED_WEIGHTS or key.startswith(OF_OTHER_STAGES)
        if not known and not is_off(value):
            raise ConfigError(f"{WHERE} has {ZERO}.{key}={value}, which is not done here: {LEAVE_OUT}")
    for key, value in (asked[ZERO].get(OFFLOADING) or {}).items():
        if key not in OFFLOADING_HANDED_ON and not is_off(value):
            raise ConfigError(f"{WHERE} has {ZERO}.{OFFLOADING}.{key}={value}, which is not done here: {LEAVE_OUT}")
    return asked


def is_installed() -> bool:
    """Whether DeepSpeed is there; it is not imported."""
    return importlib.util.find_spec("deepspeed") is not None


def refuse_stage(asked: Mapping[str, Any]) -> None:
    """Raise ConfigError if what is to be divided up, or to leave the device, is not what ZeRO does here."""
    stage = asked.get("stage", 0)
    if stage == 3:
        raise ConfigError(
            f"{WHERE} has {ZERO}.stage=3, which does not train here: weights are read outside of their modules'"
            f" forward passes, as the token table is by the head. To have weights divided up, {FSDP2_INSTEAD};"
            " stages 1 and 2 divide up the optimizer's states and gradients"
        )
    if stage not in (1, 2):
        raise ConfigError(
            f"{WHERE} has {ZERO}.stage={stage}, which divides nothing up; set 1 (the optimizer's states) or 2"
            " (gradients too), or launch with --config_file conf/accelerate/ddp.yaml"
        )
    if (device := device_of(asked.get(OFFLOADED_WEIGHTS))) != "none":
        raise ConfigError(
            f"{WHERE} has {ZERO}.{OFFLOADED_WEIGHTS}.device={device}, which is stage 3's: leave it out; the per-layer"
            " table leaves the device by trainer.per_layer_table=host"
        )
    if (device := device_of(asked.get(OFFLOADING))) not in ("none", "cpu"):
        raise ConfigError(
            f"{WHERE} has {ZERO}.{OFFLOADING}.device={device}, which is stage 3's: set cpu or none, or more processes"
        )


def device_of(section: Mapping[str, Any] | None) -> str:
    """Where a section of DeepSpeed's config sends something; ``none`` is nowhere."""
    return str((section or {}).get("device") or "none")


def is_off(value: Any) -> bool:
    """Whether a value or a section of DeepSpeed's config asks for nothing."""
    if isinstance(value, dict):
        return str(value.get("enabled", True)).lower() in ("false", "auto")
    return value in (None, False, "auto")


def owned_values(config: TrainerConfig | None, num_processes: int) -> list[tuple[str, str, float]]:
    """Of what is the loop's: DeepSpeed's name, ours, and the value; without a config, of no consequence."""
    rows, micro_batches, largest = (
        (1, 1, None) if config is None else (config.batch_size, config.gradient_accumulation, config.max_grad_norm)
    )
    return [
        ("train_micro_batch_size_per_gpu", "trainer.batch_size", rows),
        ("gradient_accumulation_steps", "trainer.gradient_accumulation", micro_batches),
        ("train_batch_size", "the rows of a step (batch_size × gradient_accumulation × processes)",
         rows * micro_batches * num_processes),
        ("gradient_clipping", "trainer.max_grad_norm", largest or 0.0),
    ]  # fmt: skip


def zero_config(config: TrainerConfig, num_processes: int) -> dict[str, Any]:
    """What DeepSpeed is told.

    Raises:
        ConfigError: Something is asked for that is not done here, or contradicts the run's own config.
    """
    asked = asked_of_zero()
    for key, ours, value in owned_values(config, num_processes):
        found = asked.get(key)
        if key == "gradient_accumulation_steps" and found == 1:
            continue  # what Accelerate says where nothing is said
        if found not in (None, "auto") and found != value:
            own = f"{value:g}" if value else "null"
            raise ConfigError(
                f'{WHERE} has {key}={found}, but {ours} is {own}; set {key} to "auto" there, or make both alike'
            )
    zero = {key: value for key, value in asked[ZERO].items() if key in ZERO_HANDED_ON and value != "auto"}
    zero[OFFLOADING] = {key: value for key, value in (zero.get(OFFLOADING) or {}).items()
                        if key in OFFLOADING_HANDED_ON and value != "auto"}  # fmt: skip
    if device_of(zero[OFFLOADING]) == "none":
        del zero[OFFLOADING]
    return {
        **{key: value for key, value in asked.items() if key in HANDED_ON and value != "auto"},
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": 1,  # the loop counts passes, of several specs too, and says which is the last
        "gradient_clipping": config.max_grad_norm or 0.0,
        "zero_force_ds_cpu_optimizer": False,  # ours runs where its states are, without a compiler
        ZERO: zero,
    }
