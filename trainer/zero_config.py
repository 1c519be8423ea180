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
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig

from model.errors import ConfigError
from trainer.config import TrainerConfig

USING_ZERO, ZERO_FILE = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE"
ZERO, OFFLOADING, OFFLOADED_WEIGHTS = "zero_optimization", "offload_optimizer", "offload_param"
PRINTING = "steps_per_print"
FSDP2_INSTEAD = "launch with --config_file conf/accelerate/fsdp2.yaml"
WHERE = "DeepSpeed's config (conf/accelerate/deepspeed.yaml, or the JSON file it names)"
# What is handed on of the section for ZeRO, and of that for offloading; the rest is refused, or of other stages.
SWITCHES = frozenset({
    "allgather_partitions", "contiguous_gradients", "overlap_comm", "reduce_scatter", "use_multi_rank_bucket_allreduce",
})  # fmt: skip
SIZES = {"allgather_bucket_size": 2, "reduce_bucket_size": 1}  # and what they have to be multiples of
OFFLOADING_SWITCHES = frozenset({"pin_memory"})
ZERO_HANDED_ON = SWITCHES | SIZES.keys() | {"stage", OFFLOADING}
OFFLOADING_HANDED_ON = OFFLOADING_SWITCHES | {"device"}
OF_OTHER_STAGES = ("stage3_", "sub_group_size")  # how what belongs to them alone begins
UNSAID = (None, "auto")
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
    PRINTING: "leave it out, and set trainer.log_every",
    "zero_force_ds_cpu_optimizer": "the optimizer is optim's, and runs where its states are: leave it out",
    "round_robin_gradients": (
        "DeepSpeed then lays parameters out in another order than it tells, so that the optimizer's states would be"
        " saved under each other's names: leave it out"
    ),
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
        written = written_config()
        if written is not None:
            refuse_no_sections(written)
        asked = copy.deepcopy(DeepSpeedPlugin(hf_ds_config=written).deepspeed_config)
    except (AttributeError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{WHERE} cannot be read: {error}") from None
    asked.pop(PRINTING)  # always Accelerate's; what the user has said of it is in the file
    if written is not None and written.get(PRINTING) != math.inf:
        asked[PRINTING] = written.get(PRINTING)
    zero = asked[ZERO]
    refuse_stage(zero)
    owned = {name for name, _, _ in owned_values(None, 1)}
    refuse_unknown(asked, owned | {ZERO})
    refuse_unknown(zero, ZERO_HANDED_ON | {OFFLOADED_WEIGHTS}, f"{ZERO}.")
    refuse_unknown(zero.get(OFFLOADING) or {}, OFFLOADING_HANDED_ON, f"{ZERO}.{OFFLOADING}.")
    refuse_values(zero)
    return asked


def written_config() -> Any:
    """What the JSON file that the launcher names holds, or what it has in a file's place; None if it names none."""
    file = os.environ.get(ZERO_FILE, "none")
    if file == "none":
        return None
    return json.loads(Path(file).read_text(encoding="utf-8")) if Path(file).exists() else HfDeepSpeedConfig(file).config


def refuse_no_sections(written: Any) -> None:
    """Raise ConfigError if something else stands where sections have to be; Accelerate takes them for granted."""
    if not isinstance(written, Mapping):
        raise ConfigError(f'{WHERE} is {written!r}; it has to be an object, such as {{"{ZERO}": {{"stage": 2}}}}')
    zero = written.get(ZERO)
    if not isinstance(zero, Mapping):
        raise ConfigError(f'{WHERE} has {ZERO}={zero!r}; it has to be a section, such as {{"stage": 2}}')
    for name in (OFFLOADING, OFFLOADED_WEIGHTS):
        if not isinstance(zero.get(name), Mapping | None):
            raise ConfigError(
                f'{WHERE} has {ZERO}.{name}={zero[name]!r}; it has to be a section, such as {{"device": "none"}},'
                " or to be left out"
            )


def refuse_unknown(asked: Mapping[str, Any], known: set[str] | frozenset[str], within: str = "") -> None:
    """Raise ConfigError if one of these keys is neither known, nor of other stages, nor switched off."""
    for key, value in asked.items():
        of_others = within and key.startswith(OF_OTHER_STAGES)
        if key not in known and not of_others and not is_off(value):
            raise ConfigError(
                f"{WHERE} has {within}{key}={value}, which is not done here: {INSTEAD.get(key, LEAVE_OUT)}"
            )


def refuse_values(zero: Mapping[str, Any]) -> None:
    """Raise ConfigError if a value is none that its key can have; DeepSpeed looks at them when weights are read."""
    offloading = zero.get(OFFLOADING) or {}
    switches = {key: zero.get(key) for key in sorted(SWITCHES)}
    switches |= {f"{OFFLOADING}.{key}": offloading.get(key) for key in sorted(OFFLOADING_SWITCHES)}
    for key, value in switches.items():
        if value not in UNSAID and not isinstance(value, bool):
            raise ConfigError(f'{WHERE} has {ZERO}.{key}={value!r}; it has to be true, false or "auto"')
    for key, unit in SIZES.items():
        value = zero.get(key)
        if value in UNSAID:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and value > 0 and value % unit == 0):  # infinity leaves no remainder that is 0
            kind = "an even" if unit == 2 else "a whole"
            raise ConfigError(f'{WHERE} has {ZERO}.{key}={value!r}; it has to be {kind} number above 0, or "auto"')


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
    if type(stage) is not int or stage not in (1, 2):  # True and "2" are none
        raise ConfigError(
            f"{WHERE} has {ZERO}.stage={stage!r}; set the number 1 (the optimizer's states are divided up) or 2"
            " (gradients too), or launch with --config_file conf/accelerate/ddp.yaml, which divides nothing up"
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
    zero = {key: value for key, value in asked[ZERO].items() if key in ZERO_HANDED_ON and value not in UNSAID}
    zero[OFFLOADING] = {key: value for key, value in (zero.get(OFFLOADING) or {}).items()
                        if key in OFFLOADING_HANDED_ON and value not in UNSAID}  # fmt: skip
    if device_of(zero[OFFLOADING]) == "none":
        del zero[OFFLOADING]
    return {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": 1,  # the loop counts passes, of several specs too, and says which is the last
        "gradient_clipping": config.max_grad_norm or 0.0,
        PRINTING: math.inf,  # steps are logged by the loop
        "zero_force_ds_cpu_optimizer": False,  # ours runs where its states are, without a compiler
        ZERO: zero,
    }
