# SPDX-License-Identifier: Apache-2.0
"""Processes that divide the optimizer's states up by DeepSpeed's ZeRO train what one process trains.

They need DeepSpeed (``make test-deepspeed``). All runs are made by one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.load import load
from tests.trainer.process_runs import ENDING_FILE, build
from tests.trainer.test_processes import assert_the_same_but_for_rounding
from tests.trainer.test_processes_sharded import assert_ended_by_a_full_disk, figures, launch, of_one, of_two
from trainer.checkpoint import STATE_FILE
from trainer.retention import checkpoint_at, steps_of
from trainer.sinks import METRICS_FILE, read_records
from trainer.state import TrainState
from trainer.trained import OPTIMIZER_FILE, WEIGHTS, read_tensors
from trainer.zero_config import is_installed

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
# Groups of their own, whose states lie in flat tensors of their own.
GROUPS = [
    {"match": "embed_tokens", "learning_rate_scale": 3.0, "weight_decay": 0.0},
    {"match": "mlp", "weight_decay": 0.3},
]
for stage in (1, 2):
    KINDS[f"groups_{stage}"] = {"zero": stage, "groups": GROUPS, "max_grad_norm": 0.7}
# What is handed on of DeepSpeed's own config; one process does nothing else for it.
SECTIONS: dict[str, dict[str, Any]] = {
    "offloading_1": {"zero": 1, "section": {"offload_optimizer": {"device": "cpu", "pin_memory": True}}},
    "offloading_2": {"zero": 2, "section": {"offload_optimizer": {"device": "cpu"}, "overlap_comm": True}},
    "overlapping": {"zero": 1, "section": {"overlap_comm": True, "reduce_bucket_size": 2000}},
    **{f"scattered_{stage}": {"zero": stage, "section": {"contiguous_gradients": False}} for stage in (1, 2)},
    **{f"reduced_{stage}": {"zero": stage, "section": {"reduce_scatter": False, "reduce_bucket_size": 2e3}}
       for stage in (1, 2)},
    **{f"buckets_{stage}": {"zero": stage, "section": {"use_multi_rank_bucket_allreduce": False, "reduce_bucket_size":
                                                        2000, "allgather_partitions": False}} for stage in (1, 2)},
}  # fmt: skip
GOING_ON = ("offloading_1", "overlapping", "scattered_2", "reduced_2")  # of these
OTHERS: dict[str, dict[str, Any]] = {"whole": {}, "sharded": {"sharded": True}}


def long(test: Callable[..., None]) -> Callable[..., None]:
    """A test of the slow ones, which needs DeepSpeed; the first of them waits for all their runs."""
    absent = pytest.mark.skipif(not is_installed(), reason="DeepSpeed is not installed: make test-deepspeed")
    return absent(pytest.mark.slow(pytest.mark.timeout(900)(test)))


def alone(wishes: dict[str, Any]) -> dict[str, Any]:
    """The same in one process, which divides nothing up."""
    return {key: value for key, value in wishes.items() if key not in ("zero", "offloaded", "section", "sharded")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of two processes, by one launch, and those of one process that they are compared with."""
    base = tmp_path_factory.mktemp("zero")
    for name, wishes in {**KINDS, "alone": {}}.items():
        build({"output": base / f"one_{name}", **of_one(RUN), **alone(wishes)}).fit()
    two = of_two(RUN)
    going_on = {
        **{
            f"{name}_again": (name, 2, wishes)
            for name, wishes in {**KINDS, **{name: SECTIONS[name] for name in GOING_ON}}.items()
        },
        "alone_then_zero": ("one_alone", 1, {"zero": 2}),
        **{f"{name}_then_zero": (name, 1, {"zero": 1}) for name in OTHERS},
        **{f"zero_then_{name}": ("stage_2", 1, wishes) for name, wishes in OTHERS.items()},
    }
    launch("deepspeed.yaml", [
        *({"output": base / f"full_{stage}", **two, "eval_every": None, "zero": stage, "full": 1} for stage in (1, 2)),
        *({"output": base / name, **two, **wishes} for name, wishes in {**KINDS, **SECTIONS, **OTHERS}.items()),
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
@pytest.mark.parametrize("name", list(SECTIONS))
def test_what_is_handed_on_changes_nothing_that_is_trained(base: Path, name: str) -> None:
    assert_the_same_but_for_rounding(base / "one_stage_1", base / name, loss=1e-4)


@long
@pytest.mark.parametrize("name", ["stage_1", "stage_2"])
def test_they_train_what_whole_models_train(base: Path, name: str) -> None:
    # Found: norms of the third step 7e-5 apart, losses after it 3e-5, no more than those of one process.
    assert_the_same_but_for_rounding(base / "whole", base / name, loss=1e-4, later_norms=1e-3)


@long
@pytest.mark.parametrize("name", ["stage_1", "stage_2", "offloaded", *SECTIONS, "groups_1", "groups_2"])
def test_what_they_leave_is_what_whole_models_leave(base: Path, name: str) -> None:
    of_whole = f"one_{name}" if name.startswith("groups") else "whole"
    whole, divided = (checkpoint_at(base / run, 1) for run in (of_whole, name))
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
@pytest.mark.parametrize("name", [*KINDS, *GOING_ON])
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
@pytest.mark.parametrize("stage", [1, 2])
def test_a_full_disk_of_one_process_ends_both_and_leaves_earlier_checkpoints(base: Path, stage: int) -> None:
    assert_ended_by_a_full_disk(base / f"full_{stage}")


@long
@pytest.mark.parametrize("name", ["stage_1", "stage_2", "offloaded"])
def test_a_gradient_that_is_not_finite_in_one_process_stops_both_before_weights_move(base: Path, name: str) -> None:
    for process in (0, 1):
        told, weights = (base / f"spoiled_{name}" / ENDING_FILE.format(process)).read_text().rsplit("\n", 1)
        assert "step 2: the gradient's norm is inf" in told
        assert "embed_tokens" in told  # the tensor, by its name
        assert weights == "weights: as they were"
