# SPDX-License-Identifier: Apache-2.0
"""Processes that divide the optimizer's states up by DeepSpeed's ZeRO train what one process trains.

Runs need DeepSpeed (``make test-deepspeed``); what is refused is known without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.checkpoint.load import load
from model.errors import ConfigError
from tests.trainer.parts import trainer_config
from tests.trainer.process_runs import ENDING_FILE, build
from tests.trainer.test_processes import ROOT, assert_the_same_but_for_rounding
from tests.trainer.test_processes_sharded import CONFIG_FILES, figures, launch, of_one, of_two
from trainer.checkpoint import STATE_FILE
from trainer.identity import surroundings_of
from trainer.optim import OptimizerName
from trainer.retention import checkpoint_at, steps_of
from trainer.runtime import refuse_environment, refuse_undivided, start
from trainer.sinks import METRICS_FILE, read_records
from trainer.state import TrainState
from trainer.trained import OPTIMIZER_FILE, WEIGHTS, read_tensors
from trainer.zero_config import USING_ZERO, is_installed, zero_config

# Rows of different lengths in every micro-batch, and two sub-models in every step, with all layers.
RUN: dict[str, Any] = {
    "policy": "sandwich", "names": ("full", "narrow"), "max_steps": 3, "eval_every": 1, "save_every": 1,
    "keep_checkpoints": 9,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "stage_1": {"zero": 1},
    "stage_2": {"zero": 2},
    "offloaded": {"zero": 2, "offloaded": "cpu"},
    "adapter": {"zero": 2, "adapter": ["text"]},
    "average": {"zero": 1, "decay": 0.9},
    "unclipped": {"zero": 2, "max_grad_norm": None},
    "media": {"zero": 2, "media": True, "adapter": ["text"]},  # not in every row, for towers that are frozen
}
OTHERS: dict[str, dict[str, Any]] = {"whole": {}, "sharded": {"sharded": True}}


def long(test: Callable[..., None]) -> Callable[..., None]:
    """A test of the slow ones, which needs DeepSpeed; the first of them waits for all their runs."""
    absent = pytest.mark.skipif(not is_installed(), reason="DeepSpeed is not installed: make test-deepspeed")
    return absent(pytest.mark.slow(pytest.mark.timeout(900)(test)))


def alone(wishes: dict[str, Any]) -> dict[str, Any]:
    """The same in one process, which divides nothing up."""
    return {key: value for key, value in wishes.items() if key not in ("zero", "offloaded", "sharded")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of two processes, by one launch, and those of one process that they are compared with."""
    base = tmp_path_factory.mktemp("zero")
    for name, wishes in {**KINDS, "alone": {}}.items():
        build({"output": base / f"one_{name}", **of_one(RUN), **alone(wishes)}).fit()
    two = of_two(RUN)
    going_on = {
        **{f"{name}_again": (name, 2, wishes) for name, wishes in KINDS.items()},
        "alone_then_zero": ("one_alone", 1, {"zero": 2}),
        **{f"{name}_then_zero": (name, 1, {"zero": 1}) for name in OTHERS},
        **{f"zero_then_{name}": ("stage_2", 1, wishes) for name, wishes in OTHERS.items()},
    }
    launch("deepspeed.yaml", [
        *({"output": base / name, **two, **wishes} for name, wishes in {**KINDS, **OTHERS}.items()),
        *({"output": base / name, "goes_on_from": base / source, "step": step, **two, **wishes}
          for name, (source, step, wishes) in going_on.items()),
        *({"output": base / f"stopped_{stage}", **two, "zero": stage, "max_steps": 9, "save_every": None,
           "asked_to_stop": 1} for stage in (1, 2)),
        *({"output": base / f"spoiled_{name}", **two, **KINDS[name], "eval_every": None, "spoiled": 1}
          for name in ("stage_1", "stage_2", "offloaded")),
    ])  # fmt: skip
    return base


@long
@pytest.mark.parametrize("name", list(KINDS))
def test_processes_with_divided_states_train_what_one_process_trains(base: Path, name: str) -> None:
    assert_the_same_but_for_rounding(base / f"one_{name}", base / name, loss=1e-4)
    first = [next(read_records(base / run / METRICS_FILE))["loss"] for run in (f"one_{name}", name)]
    assert first[0] == pytest.approx(first[1], abs=1e-6)


@long
@pytest.mark.parametrize("name", ["stage_1", "stage_2"])
def test_they_train_what_whole_models_train(base: Path, name: str) -> None:
    # Found: norms of the third step 7e-5 apart, losses after it 3e-5, no more than those of one process.
    assert_the_same_but_for_rounding(base / "whole", base / name, loss=1e-4, later_norms=1e-3)


@long
@pytest.mark.parametrize("name", ["stage_1", "stage_2", "offloaded"])
def test_what_they_leave_is_what_whole_models_leave(base: Path, name: str) -> None:
    whole, divided = (checkpoint_at(base / run, 1) for run in ("whole", name))
    theirs = dict(load(divided / WEIGHTS, dtype=torch.float32).named_parameters())
    for parameter, own in load(whole / WEIGHTS, dtype=torch.float32).named_parameters():
        torch.testing.assert_close(theirs[parameter], own, rtol=0, atol=2e-3)  # a step of Adam is 5e-4 either way
    states, their_states = (read_tensors(path / OPTIMIZER_FILE) for path in (whole, divided))
    assert their_states["state"].keys() == states["state"].keys()
    assert their_states["param_groups"] == states["param_groups"]
    for number, remembered in states["state"].items():
        assert their_states["state"][number].keys() == remembered.keys()
        for key, value in remembered.items():
            torch.testing.assert_close(their_states["state"][number][key], value, rtol=1e-3, atol=1e-6)


@long
@pytest.mark.parametrize("name", list(KINDS))
def test_they_go_on_bit_for_bit(base: Path, name: str) -> None:
    assert figures(base / f"{name}_again") == figures(base / name)
    assert steps_of(base / f"{name}_again") == [2, 3]
    states = [read_tensors(checkpoint_at(base / run, 3) / OPTIMIZER_FILE)["state"] for run in (name, f"{name}_again")]
    for number, remembered in states[0].items():
        assert all(torch.equal(states[1][number][key], value) for key, value in remembered.items())


@long
@pytest.mark.parametrize("name", ["alone", *OTHERS])
def test_runs_of_others_go_on_with_divided_states(base: Path, name: str) -> None:
    source = base / ("one_alone" if name == "alone" else name)
    assert_the_same_but_for_rounding(source, base / f"{name}_then_zero", loss=1e-4)


@long
@pytest.mark.parametrize("name", list(OTHERS))
def test_others_go_on_with_runs_of_divided_states(base: Path, name: str) -> None:
    assert_the_same_but_for_rounding(base / "stage_2", base / f"zero_then_{name}", loss=1e-4)


@long
@pytest.mark.parametrize("name", ["stage_1", "stage_2", "adapter", "average"])
def test_one_process_goes_on_with_runs_of_divided_states(base: Path, name: str) -> None:
    wishes = {**of_one(RUN), **alone(KINDS[name])}
    build({"output": base / f"{name}_then_one", "goes_on_from": base / name, "step": 2, **wishes}).fit()
    assert_the_same_but_for_rounding(base / name, base / f"{name}_then_one")


@long
@pytest.mark.parametrize("stage", [1, 2])
def test_a_signal_to_one_process_ends_both_with_a_checkpoint(base: Path, stage: int) -> None:
    directory = base / f"stopped_{stage}"
    assert [(directory / ENDING_FILE.format(process)).read_text() for process in (0, 1)] == ["sigterm"] * 2
    (last,) = steps_of(directory)
    assert 1 <= last < 9
    assert TrainState.read(checkpoint_at(directory, last) / STATE_FILE).step == last


@long
@pytest.mark.parametrize("name", ["stage_1", "stage_2", "offloaded"])
def test_a_gradient_that_is_not_finite_in_one_process_stops_both_before_weights_move(base: Path, name: str) -> None:
    for process in (0, 1):
        told, weights = (base / f"spoiled_{name}" / ENDING_FILE.format(process)).read_text().rsplit("\n", 1)
        assert "step 2: the gradient's norm is inf" in told
        assert "embed_tokens" in told  # the tensor, by its name
        assert weights == "weights: as they were"


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

    def ask(written: dict[str, Any] | None = None, **variables: str) -> None:
        if written is not None:
            (tmp_path / "zero.json").write_text(json.dumps(written))
            monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
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
        "zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 1000, "contiguous_gradients":
                              "auto", "stage3_prefetch_bucket_size": "auto",
                              "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "train_batch_size": 12, "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 1.0,
        "wall_clock_breakdown": True, "fp16": {"enabled": False}, "bf16": {"enabled": "auto"},
    })  # fmt: skip
    told = zero_config(trainer_config(tmp_path, gradient_accumulation=3), 2)
    assert told.pop("steps_per_print") == float("inf")
    assert told == {
        "zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 1000,
                              "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
        "wall_clock_breakdown": True, "zero_force_ds_cpu_optimizer": False,
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
    with pytest.raises(ConfigError, match=r"without a gradient in a step.*sub-model.*towers.*fsdp2\.yaml"):
        start(trainer_config(tmp_path), may_leave_unused=True)


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
