# SPDX-License-Identifier: Apache-2.0
"""What a launcher may ask of DeepSpeed, and what is refused; all of it is known without DeepSpeed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from model.errors import CheckpointError, ConfigError
from tests.trainer.parts import trainer_config
from tests.trainer.test_processes import ROOT
from tests.trainer.test_processes_sharded import CONFIG_FILES
from trainer.identity import surroundings_of
from trainer.optim import OptimizerName
from trainer.runtime import JOINING, SHARDING, refuse_environment, refuse_undivided, refuse_unlike_zero, start
from trainer.zero import Zero
from trainer.zero_config import USING_ZERO, ZERO_FILE, zero_config


def test_without_deepspeed_it_is_refused_by_saying_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(USING_ZERO, "true")
    monkeypatch.setattr("trainer.zero_config.is_installed", lambda: False)
    for refused in (refuse_environment, lambda: start(trainer_config(tmp_path), may_leave_unused=False)):
        with pytest.raises(ConfigError, match=rf"{USING_ZERO}=true.*pip install 'matslice\[deepspeed\]'.*fsdp2.yaml"):
            refused()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Has DeepSpeed be asked for by the launcher, with a file of its own if there is one to be written."""
    monkeypatch.setenv(USING_ZERO, "true")
    monkeypatch.setattr("trainer.zero_config.is_installed", lambda: True)
    for name, value in zip(JOINING, ("0", "0", "1", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)

    def ask(written: Any = ..., **variables: str) -> None:
        if written is not ...:
            (tmp_path / "zero.json").write_text(written if isinstance(written, str) else json.dumps(written))
            monkeypatch.setenv(ZERO_FILE, str(tmp_path / "zero.json"))
        for name, value in variables.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)

    return ask


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("DEEPSPEED_ZERO_STAGE", "3", "zero_optimization.stage=3.*outside of their modules.*fsdp2.yaml"),
        ("DEEPSPEED_ZERO_STAGE", "0", "zero_optimization.stage=0.*ddp.yaml"),
        ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "offload_param.device=cpu.*trainer.per_layer_table=host"),
        ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "nvme", "offload_optimizer.device=nvme.*set cpu or none"),
        ("DEEPSPEED_CONFIG_FILE", "nowhere.json", "cannot be read: .*nowhere.json"),
    ],
)
def test_what_zero_does_not_do_here_is_refused(
    asked: Callable[..., None], variable: str, value: str, told: str
) -> None:
    asked(**{variable: value})
    with pytest.raises(ConfigError, match=told):
        refuse_environment()


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "has optimizer=.*set optim.learning_rate"),
        ({"scheduler": {"type": "WarmupLR"}}, "has scheduler=.*set schedule="),
        ({"fp16": {"enabled": True}}, "has fp16=.*set trainer.precision"),
        ({"bf16": {"enabled": True}}, "has bf16=.*set trainer.precision"),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "set trainer.recompute"),
        ({"steps_per_print": 10}, "has steps_per_print=10.*set trainer.log_every"),
        ({"zero_force_ds_cpu_optimizer": True}, "has zero_force_ds_cpu_optimizer=True.*runs where its states are"),
        ({"communication_data_type": "fp16"}, "has communication_data_type=fp16.*leave it out"),
        ({"flops_profiler": {"enabled": True}}, "has flops_profiler=.*leave it out"),
        ({"comms_logger": {"enabled": True}}, "has comms_logger=.*leave it out"),
        ({"memory_breakdown": True}, "has memory_breakdown=True.*leave it out"),
        ({"wall_clock_breakdown": True}, "has wall_clock_breakdown=True.*leave it out"),
        (
            {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
            "has zero_optimization.round_robin_gradients=True.*under each other's names: leave it out",
        ),
        ({"data_efficiency": {"enabled": True}}, "has data_efficiency=.*leave it out"),
        ({"zero_optimization": {"stage": 2, "zero_quantized_gradients": True}}, "zero_quantized_gradients=True"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, "ratio=0.5"),
    ],
)
def test_sections_of_its_file_that_are_not_handed_on_are_refused(
    asked: Callable[..., None], section: dict[str, Any], told: str
) -> None:
    asked({"zero_optimization": {"stage": 2}, **section})
    with pytest.raises(ConfigError, match=told):
        refuse_environment()


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{bad", "cannot be read: "),
        ([], r"config .* is \[\]; it has to be an object"),
        ({}, "has zero_optimization=None; it has to be a section"),
        ({"zero_optimization": None}, "has zero_optimization=None; it has to be a section"),
        ({"zero_optimization": 2}, "has zero_optimization=2; it has to be a section"),
        ({"zero_optimization": {}}, "stage=0; set the number 1"),
        ({"zero_optimization": {"stage": "2"}}, "stage='2'; set the number 1"),
        ({"zero_optimization": {"stage": True}}, "stage=True; set the number 1"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "offload_optimizer='cpu'; .*a section"),
        ({"zero_optimization": {"stage": 2, "offload_param": "cpu"}}, "offload_param='cpu'; .*a section"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": "yes"}}},
         "offload_optimizer.pin_memory='yes'; it has to be true, false"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "yes"}}, "overlap_comm='yes'; it has to be true, false"),
        ({"zero_optimization": {"stage": 2, "reduce_scatter": 1.5}}, "reduce_scatter=1.5; it has to be true, false"),
        ({"zero_optimization": {"stage": 2, "allgather_bucket_size": "big"}}, "'big'; it has to be an even number"),
        ({"zero_optimization": {"stage": 2, "allgather_bucket_size": 3}}, "size=3; it has to be an even number"),
        ({"zero_optimization": {"stage": 2, "allgather_bucket_size": 0}}, "size=0; .* number above 0"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": True}}, "size=True; it has to be a whole number"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 2.5}}, "size=2.5; it has to be a whole number"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, "size=-1; .* number above 0"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": [8]}}, r"size=\[8\]; it has to be a whole number"),
    ],
)  # fmt: skip
def test_values_that_are_none_are_refused_early(asked: Callable[..., None], written: Any, told: str) -> None:
    asked(written)
    with pytest.raises(ConfigError, match=told):
        refuse_environment()


@pytest.mark.parametrize("absent", JOINING)
def test_what_no_launcher_started_is_refused(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    asked()
    refuse_environment()
    monkeypatch.delenv(absent)
    with pytest.raises(ConfigError, match=f"has {USING_ZERO}=true, but not {absent}, .*conf/accelerate/deepspeed.yaml"):
        refuse_environment()


def test_two_ways_of_dividing_up_are_refused(asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    asked()
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(SHARDING, "true")
    with pytest.raises(ConfigError, match=f"both {SHARDING} and {USING_ZERO}.*fsdp2.yaml or deepspeed.yaml"):
        refuse_environment()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train_micro_batch_size_per_gpu", 8, "trainer.batch_size is 2"),
        ("gradient_accumulation_steps", 4, "trainer.gradient_accumulation is 3"),
        ("train_batch_size", 7, "processes.* is 12"),
        ("gradient_clipping", 0.5, "trainer.max_grad_norm is 1"),
    ],
)
def test_values_that_contradict_the_run_are_refused_by_naming_both(
    tmp_path: Path, asked: Callable[..., None], key: str, value: float, told: str
) -> None:
    asked({"zero_optimization": {"stage": 2}, key: value})
    with pytest.raises(ConfigError, match=rf'has {key}={value}, but .*{told}; set {key} to "auto"'):
        zero_config(trainer_config(tmp_path, gradient_accumulation=3), 2)


def test_what_is_the_users_is_handed_on_and_the_rest_filled_in(tmp_path: Path, asked: Callable[..., None]) -> None:
    asked({
        "zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 1e3, "contiguous_gradients":
                              "auto", "reduce_scatter": None, "stage3_prefetch_bucket_size": "auto",
                              "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "train_batch_size": 12, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 1.0,
        "steps_per_print": float("inf"), "zero_force_ds_cpu_optimizer": False, "wall_clock_breakdown": False,
        "fp16": {"enabled": False}, "bf16": {"enabled": "auto"},
    })  # fmt: skip
    told = zero_config(trainer_config(tmp_path, gradient_accumulation=3), 2)
    assert told.pop("steps_per_print") == float("inf")
    assert told == {
        "zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 1000,
                              "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip


def test_what_the_launcher_says_of_itself_is_no_contradiction(tmp_path: Path, asked: Callable[..., None]) -> None:
    asked(GRADIENT_ACCUMULATION_STEPS="1", DEEPSPEED_ZERO_STAGE="1", DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="none")
    told = zero_config(trainer_config(tmp_path, gradient_accumulation=3, max_grad_norm=None), 2)
    assert told["zero_optimization"] == {"stage": 1}
    assert told["gradient_clipping"] == 0.0


@pytest.mark.parametrize("name", list(OptimizerName))
def test_optimizers_that_have_to_see_tensors_are_refused(asked: Callable[..., None], name: OptimizerName) -> None:
    asked()
    if name is OptimizerName.adamw:
        refuse_undivided(name)
    else:
        with pytest.raises(ConfigError, match=f"optim.name is {name}.*set optim.name=adamw"):
            refuse_undivided(name)


def test_steps_that_leave_something_out_are_refused(tmp_path: Path, asked: Callable[..., None]) -> None:
    asked()
    for refused in (refuse_unlike_zero, start):
        with pytest.raises(ConfigError, match=r"without a gradient in a step.*sub-model.*towers.*fsdp2\.yaml"):
            refused(trainer_config(tmp_path), may_leave_unused=True)


def test_what_no_launcher_has_asked_of_zero_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(USING_ZERO, raising=False)
    refuse_unlike_zero(trainer_config(tmp_path), may_leave_unused=True)


def test_a_run_that_goes_on_with_another_stage_is_told_so(tmp_path: Path, asked: Callable[..., None]) -> None:
    asked(DEEPSPEED_ZERO_STAGE="1")
    config = trainer_config(tmp_path)
    accelerator = start(config, may_leave_unused=False)
    assert accelerator.num_processes == 1
    assert surroundings_of(config, accelerator)["DeepSpeed's ZeRO stage"] == 1


def test_the_config_file_asks_for_what_is_done_here() -> None:
    written = yaml.safe_load((CONFIG_FILES / "deepspeed.yaml").read_text())
    assert written["distributed_type"] == "DEEPSPEED"
    assert written["deepspeed_config"]["zero_stage"] == 2


def test_deepspeed_is_imported_only_where_it_divides_something_up() -> None:
    program = "import sys, recipes.train; sys.exit(any(name.split('.')[0] == 'deepspeed' for name in sys.modules))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_states_of_different_steps_are_not_put_together() -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    plain = torch.optim.AdamW([("first", first), ("second", second)])
    for one in (first, second):
        one.grad = torch.ones_like(one)
    plain.step()
    second.grad = None
    plain.step()
    divided = torch.optim.AdamW([("first", first), ("second", second)])
    divided.param_groups[0]["params"] = [nn.Parameter(torch.zeros(5))]  # the part of this process
    zero = Zero(SimpleNamespace(), divided, [[first, second]], set())
    with pytest.raises(CheckpointError, match=r"fewer of the optimizer's steps than the rest.*fsdp2\.yaml, or ddp"):
        zero.load_state_dict(plain.state_dict())
