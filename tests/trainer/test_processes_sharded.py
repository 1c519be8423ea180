# SPDX-License-Identifier: Apache-2.0
"""Processes that divide a model up train what one process trains, and go on with each other's runs.

All runs of several processes are made by one launch, since joining processes takes longer than all of them.
"""

from __future__ import annotations

import json
import os
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
from tests.trainer.test_processes import ROOT, assert_the_same_but_for_rounding, free_port
from trainer.checkpoint import STATE_FILE
from trainer.optim import OptimizerName
from trainer.retention import CHECKPOINTS, checkpoint_at, steps_of
from trainer.runtime import SHARDING, refuse_undivided, start
from trainer.sinks import METRICS_FILE, read_records
from trainer.state import TrainState
from trainer.trained import OPTIMIZER_FILE, WEIGHTS, read_tensors

# The last pass of a step skips layers; five validation rows leave processes with different numbers of batches.
TEXT: dict[str, Any] = {"policy": "sandwich", "max_steps": 3, "eval_every": 1, "save_every": 1, "keep_checkpoints": 9}
MEDIA: dict[str, Any] = {"policy": "sandwich", "max_steps": 5, "media": True, "eval_every": 5}
ADAPTER = {"adapter": ["text"]}
TOWERS = {"frozen": ["text", "embedders"]}
CONFIG_FILES = ROOT / "conf" / "accelerate"


def long(test: Callable[..., None]) -> Callable[..., None]:
    """A test of the slow ones; the first of them waits for all their runs."""
    return pytest.mark.slow(pytest.mark.timeout(900)(test))


def of_two(wishes: dict[str, Any], *, media: bool = False) -> dict[str, Any]:
    """With the batches of each of two processes."""
    return {**wishes, "batch_size": 1 if media else 2, "gradient_accumulation": 1 if media else 2, "eval_batch_size": 2}


def of_one(wishes: dict[str, Any], *, media: bool = False) -> dict[str, Any]:
    """With the batches of both: as many micro-batches more, which hold the same rows."""
    two = of_two(wishes, media=media)
    return {**two, "gradient_accumulation": 2 * two["gradient_accumulation"]}


def launch(config_file: str, runs: list[dict[str, Any]]) -> None:
    """Make these runs in two processes; a hang is a failure."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG_FILES / config_file),
        "--num_processes", "2", "--main_process_port", str(free_port()), "-m", "tests.trainer.process_runs",
        json.dumps(runs, default=str),
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=840)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: two processes together, one alone, and the two again, from where the one was after a step."""
    base = tmp_path_factory.mktemp("quick")
    build({"output": base / "one", **of_one(TEXT)}).fit()
    sharded = {"sharded": True, **of_two(TEXT)}
    launch("fsdp2.yaml", [
        {"output": base / "sharded", **sharded},
        {"output": base / "one_then_sharded", "goes_on_from": base / "one", "step": 1, **sharded},
    ])  # fmt: skip
    return base


def test_a_divided_model_is_trained_as_a_whole_one(quick: Path) -> None:
    assert_the_same_but_for_rounding(quick / "one", quick / "sharded", loss=1e-4)
    first = [next(read_records(quick / name / METRICS_FILE))["loss"] for name in ("one", "sharded")]
    assert first[0] == pytest.approx(first[1], abs=1e-6)


def test_what_a_divided_model_leaves_is_what_a_whole_one_leaves(quick: Path) -> None:
    one, sharded = (checkpoint_at(quick / name, 1) for name in ("one", "sharded"))
    theirs = dict(load(sharded / WEIGHTS, dtype=torch.float32).named_parameters())
    for name, own in load(one / WEIGHTS, dtype=torch.float32).named_parameters():
        torch.testing.assert_close(theirs[name], own, rtol=0, atol=2e-3)  # a step of Adam is 5e-4 either way
    states, their_states = (read_tensors(path / OPTIMIZER_FILE) for path in (one, sharded))
    assert their_states["state"].keys() == states["state"].keys()
    for number, remembered in states["state"].items():
        for key, value in remembered.items():
            torch.testing.assert_close(their_states["state"][number][key], value, rtol=1e-3, atol=1e-6)


def test_a_run_of_one_process_goes_on_divided_up(quick: Path) -> None:
    assert_the_same_but_for_rounding(quick / "one", quick / "one_then_sharded")


def test_a_divided_run_goes_on_in_one_process(quick: Path) -> None:
    target = quick / "sharded_then_one"
    build({"output": target, "goes_on_from": quick / "sharded", "step": 2, **of_one(TEXT)}).fit()
    assert_the_same_but_for_rounding(quick / "sharded", target)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything else."""
    base = tmp_path_factory.mktemp("slow")
    whole, sharded = {**of_two(TEXT)}, {"sharded": True, **of_two(TEXT)}
    media = {"sharded": True, **of_two(MEDIA, media=True)}
    for name, wishes in {"adapter": ADAPTER, "average": {"decay": 0.9}}.items():
        build({"output": base / f"one_{name}", **of_one(TEXT), **wishes}).fit()
    for name, wishes in {"media": {}, "towers": TOWERS, "media_adapter": {"adapter": ["text", "embedders"]}}.items():
        build({"output": base / f"one_{name}", **of_one(MEDIA, media=True), **wishes}).fit()
    launch("fsdp2.yaml", [
        *({"output": base / f"full_{kind}", **wishes, "eval_every": None, "full": 1}
          for kind, wishes in {"sharded": sharded, "whole": whole}.items()),
        {"output": base / "sharded", **sharded},
        *({"output": base / f"recompute_{text}", "recompute": {"text": text}, **sharded}
          for text in ("full", "every", "selective")),
        {"output": base / "adapter", **sharded, **ADAPTER},
        {"output": base / "average", "decay": 0.9, **sharded},
        {"output": base / "whole", **whole},
        *({"output": base / f"{name}_again", "goes_on_from": base / name, "step": 2, **wishes}
          for name, wishes in {"sharded": sharded, "whole": whole, "adapter": {**sharded, **ADAPTER},
                               "average": {**sharded, "decay": 0.9}}.items()),
        {"output": base / "whole_then_sharded", "goes_on_from": base / "whole", "step": 1, **sharded},
        {"output": base / "sharded_then_whole", "goes_on_from": base / "sharded", "step": 1, **whole},
        {"output": base / "media", **media},
        {"output": base / "towers", **media, **TOWERS},
        {"output": base / "media_adapter", **media, "adapter": ["text", "embedders"]},
        *({"output": base / f"stopped_{kind}", **wishes, "max_steps": 9, "save_every": None, "asked_to_stop": 1}
          for kind, wishes in {"sharded": sharded, "whole": whole}.items()),
    ])  # fmt: skip
    return base


@long
@pytest.mark.parametrize("name", ["adapter", "average"])
def test_adapters_and_averages_are_trained_alike(slow: Path, name: str) -> None:
    assert_the_same_but_for_rounding(slow / f"one_{name}", slow / name, loss=1e-4)


@long
@pytest.mark.parametrize("name", ["media", "towers", "media_adapter"])
def test_processes_with_and_without_media_do_not_wait_forever(slow: Path, name: str) -> None:
    # Five steps of Adam, as for whole models.
    assert_the_same_but_for_rounding(slow / f"one_{name}", slow / name, loss=3e-4, later_norms=2e-2)


@long
@pytest.mark.parametrize("text", ["full", "every", "selective"])
def test_what_is_made_again_changes_no_bit(slow: Path, text: str) -> None:
    assert figures(slow / f"recompute_{text}") == figures(slow / "sharded")


@long
@pytest.mark.parametrize("name", ["sharded", "whole", "adapter", "average"])
def test_two_processes_go_on_bit_for_bit(slow: Path, name: str) -> None:
    assert figures(slow / f"{name}_again") == figures(slow / name)
    assert steps_of(slow / f"{name}_again") == [2, 3]


@long
@pytest.mark.parametrize("name", ["whole", "adapter", "average"])
def test_runs_of_two_processes_go_on_in_one(slow: Path, name: str) -> None:
    wishes = {"adapter": ADAPTER, "average": {"decay": 0.9}}.get(name, {})
    build({"output": slow / f"{name}_then_one", "goes_on_from": slow / name, "step": 2, **of_one(TEXT), **wishes}).fit()
    assert_the_same_but_for_rounding(slow / name, slow / f"{name}_then_one")


@long
@pytest.mark.parametrize("name", ["whole_then_sharded", "sharded_then_whole"])
def test_whole_and_divided_models_go_on_with_each_other(slow: Path, name: str) -> None:
    assert_the_same_but_for_rounding(slow / name.partition("_")[0], slow / name, loss=1e-4)


@long
@pytest.mark.parametrize("kind", ["sharded", "whole"])
def test_a_signal_to_one_process_ends_both_with_a_checkpoint(slow: Path, kind: str) -> None:
    directory = slow / f"stopped_{kind}"
    assert [(directory / ENDING_FILE.format(process)).read_text() for process in (0, 1)] == ["sigterm"] * 2
    (last,) = steps_of(directory)
    assert 1 <= last < 9
    assert TrainState.read(checkpoint_at(directory, last) / STATE_FILE).step == last


@long
@pytest.mark.parametrize("kind", ["sharded", "whole"])
def test_a_full_disk_of_one_process_ends_both_and_leaves_earlier_checkpoints(slow: Path, kind: str) -> None:
    assert_ended_by_a_full_disk(slow / f"full_{kind}")


def assert_ended_by_a_full_disk(directory: Path) -> None:
    """What a run leaves whose second process could not write the second checkpoint."""
    first, second = ((directory / ENDING_FILE.format(process)).read_text() for process in (0, 1))
    assert "could not be written (another process says why" in first
    assert "could not be written ([Errno 28] No space left on device" in second
    assert "that of step 1 is as it was" in first
    assert steps_of(directory) == [1]
    assert len(list((directory / CHECKPOINTS).iterdir())) == 1


def figures(directory: Path) -> list[tuple[Any, ...]]:
    """What a run logged, but for times."""
    return [
        tuple(record.get(key) for key in ("kind", "step", "spec", "loss", "gradient_norm", "learning_rate"))
        for record in read_records(directory / METRICS_FILE)
    ]


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FSDP_VERSION", "1", "only FSDP2 trains here"),
        ("FSDP_OFFLOAD_PARAMS", "true", "trainer.per_layer_table=host"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "trainer.recompute.text=full"),
    ],
)
def test_what_is_not_done_by_fsdp_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(SHARDING, "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable}={value}.*{told}"):
        start(trainer_config(tmp_path), may_leave_unused=False)


@pytest.mark.parametrize("name", list(OptimizerName))
def test_optimizers_that_cannot_be_divided_are_refused(monkeypatch: pytest.MonkeyPatch, name: OptimizerName) -> None:
    refuse_undivided(name)
    monkeypatch.setenv(SHARDING, "true")
    if name in (OptimizerName.adafactor, OptimizerName.adamw_8bit):
        with pytest.raises(ConfigError, match=f"optim.name is {name}.*choose one of adamw, adamw_bf16_states"):
            refuse_undivided(name)
    else:
        refuse_undivided(name)


def test_config_files_are_of_what_trains_here() -> None:
    kinds = {path.name: yaml.safe_load(path.read_text()) for path in CONFIG_FILES.glob("*.yaml")}
    assert {name: kind["distributed_type"] for name, kind in kinds.items()} == {
        "ddp.yaml": "MULTI_GPU", "deepspeed.yaml": "DEEPSPEED", "fsdp2.yaml": "FSDP",
    }  # fmt: skip
    assert kinds["fsdp2.yaml"]["fsdp_config"]["fsdp_version"] == 2
