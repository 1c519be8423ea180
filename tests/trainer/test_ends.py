# SPDX-License-Identifier: Apache-2.0
"""Why and how a run ends, what it leaves behind, and what it keeps."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.adapter.lora import AdapterConfig
from model.errors import CheckpointError, ConfigError, DivergenceError
from tests.trainer.parts import losses, tiny_trainer, trainer_config
from trainer.average import AverageConfig
from trainer.evaluation.held_out import Score
from trainer.loop import Trainer
from trainer.retention import steps_of
from trainer.sinks import METRICS_FILE, read_records
from trainer.state import TrainState
from trainer.stopping import EarlyStoppingConfig, Ending
from trainer.weights import Weights

ADAPTER = AdapterConfig(rank=2, alpha=4)


def trainer(output: Path, found: list[float] | None = None, **changes: Any) -> Trainer:
    """A run whose evaluations, one a step, find these losses if any are given."""
    config = trainer_config(output, **{"eval_every": 1, "max_steps": 8} | changes)
    made = tiny_trainer(config, adapter=ADAPTER, num_validation=2)
    if found is not None:
        left = iter(found[made.run.resumed_step :])
        made.evaluate = lambda: [Score(loss_sum=next(left), supervised_tokens=1, exact=0, examples=1)]
    return made


def test_a_run_ends_when_evaluations_gain_nothing(tmp_path: Path) -> None:
    found = [3.0, 2.0, 1.95, 2.5, math.nan, 1.0, 1.0, 1.0]
    run = trainer(tmp_path, found, early_stopping=EarlyStoppingConfig(patience=3, min_delta=0.1))
    state = run.fit()
    assert (state.step, run.ending) == (5, Ending.early)
    assert (state.best_loss, state.best_step, state.evaluations_without_gain) == (1.95, 3, 3)
    assert steps_of(tmp_path) == [5]  # saved where it ended, although that was not due
    again = trainer(tmp_path, found, resume=True, early_stopping=EarlyStoppingConfig(patience=3, min_delta=0.1))
    assert again.fit().step == 5
    assert again.ending is Ending.early
    patient = trainer(tmp_path, found, resume=True, early_stopping=EarlyStoppingConfig(patience=4, min_delta=0.1))
    assert (patient.fit().step, patient.ending) == (8, Ending.done)


def test_the_best_checkpoint_stays_and_is_linked(tmp_path: Path) -> None:
    found = [3.0, 2.0, 2.5, 2.4, 2.3]
    trainer(tmp_path, found, max_steps=5, save_every=2, keep_best=True, keep_checkpoints=1).fit()
    assert steps_of(tmp_path) == [2, 5]
    assert (tmp_path / "best").resolve() == tmp_path / "checkpoints" / "step_000002" / "weights"
    assert (tmp_path / "weights").resolve() == tmp_path / "checkpoints" / "step_000005" / "weights"


def test_an_evaluation_that_finds_the_best_is_saved_although_it_is_not_due(tmp_path: Path) -> None:
    trainer(tmp_path, [3.0, 2.0, 1.0, 2.4, 2.3], max_steps=5, keep_best=True, keep_checkpoints=1).fit()
    assert steps_of(tmp_path) == [3, 5]


def test_a_run_whose_time_is_up_is_saved_and_goes_on_with_more(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", max_steps=3)
    whole.fit()
    run = trainer(tmp_path / "run", max_steps=3, max_minutes=1e-6)
    assert (run.fit().step, run.ending) == (1, Ending.minutes)
    again = trainer(tmp_path / "run", max_steps=3, max_minutes=1e-6, resume=True)
    assert (again.fit().step, again.ending) == (1, Ending.minutes)
    more = trainer(tmp_path / "run", max_steps=3, max_minutes=60.0, resume=True)
    assert (more.fit().step, more.ending) == (3, Ending.done)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_evaluations_and_weights_are_those_of_the_average(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=3, average=AverageConfig(decay=0.9))
    run.fit()
    average = run.trained.average
    assert average is not None
    with average.applied():
        measured = [score.loss for score in run.evaluate()]
        own = {name: p.detach().clone() for name, p in run.trained.parameters.items()}
    assert measured[0] != run.evaluate()[0].loss
    told = [record["loss"] for record in read_records(tmp_path / METRICS_FILE) if record["kind"] == "validation"]
    assert told[-1] == measured[0]
    run.weights.load(tmp_path / "weights")
    assert all(torch.equal(p, own[name]) for name, p in run.trained.parameters.items())


def test_a_loss_that_is_not_finite_names_the_rows_of_its_micro_batch(tmp_path: Path) -> None:
    run = trainer(tmp_path, gradient_accumulation=3, save_every=1)
    step, micro = 2, 1  # counted from 0
    bad = [row.where for row in run.loader.take(step * 6 + micro * 2)]
    before: dict[str, torch.Tensor] = {}
    calls = [0]

    def spoil(_module: nn.Module, _inputs: Any, loss: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == step * 3 + micro + 1:
            before.update({name: p.detach().clone() for name, p in run.trained.parameters.items()})
            return loss * math.nan
        return loss

    prepare = run.accelerator.prepare
    run.accelerator.prepare = lambda model: hooked(prepare(model), spoil)  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match=r"step 3: the loss is nan .*as after step 2.*rows of the micro-batches"):
        run.fit()
    told = json.loads((tmp_path / "divergence.json").read_text())
    assert (told["step"], told["rows"], told["loss_sums"], told["gradient_norm"]) == (3, bad, ["nan"], None)
    assert before
    assert all(torch.equal(p, before[name]) for name, p in run.trained.parameters.items())
    again = trainer(tmp_path, gradient_accumulation=3, resume=True)
    assert not (tmp_path / "divergence.json").exists()
    again.run.close()


def hooked(model: nn.Module, hook: Any) -> nn.Module:
    model.register_forward_hook(hook)
    return model


def test_a_trained_tensor_that_the_loss_does_not_depend_on_is_refused_in_the_first_step(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.model.register_parameter("forgotten", nn.Parameter(torch.ones(2)))
    with pytest.raises(ConfigError, match=r"the loss does not depend on them: forgotten \(no gradient in the first"):
        run.fit()
    assert not run.optimizer.state


# What torch says of a full disk depends on where in its archive the room ends.
FULL_FOR_TORCH = {
    "archive": "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
    "buffer": "basic_ios::clear: iostream error",
    "optimizer": "PytorchStreamWriter failed writing file data/0: file write failed",
}


@pytest.mark.parametrize("fails", ["weights", "rename", *FULL_FOR_TORCH])
def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    run = trainer(tmp_path, save_every=1)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def at_step_two(path: Path) -> None:
        if "step_000002" in str(path):
            raise full

    save = run.weights.save
    if fails == "weights":
        run.weights = Weights(save=lambda path: (save(path), at_step_two(path))[0], load=run.weights.load)
    elif fails in FULL_FOR_TORCH:
        message = FULL_FOR_TORCH[fails]
        monkeypatch.setattr("trainer.trained.torch.save", lambda value, path: fill(value, path, at_step_two, message))
    else:
        monkeypatch.setattr("trainer.checkpoint.flush", at_step_two)
    with pytest.raises(
        CheckpointError,
        match=r"step_000002: the checkpoint could not be written \(.*GB are free there\); that of step 1 is as it was",
    ):
        run.fit()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
    monkeypatch.undo()
    assert trainer(tmp_path, save_every=1, resume=True, max_steps=8).fit().step == 8


SAVE = torch.save


def fill(value: Any, path: Path, check: Any, message: str) -> None:
    """What torch does on a full disk."""
    SAVE(value, path)
    try:
        check(path)
    except OSError as error:
        raise RuntimeError(message) from error


def test_state_counts_only_gains_of_enough(tmp_path: Path) -> None:
    state = TrainState(step=1)
    for step, loss in enumerate([1.0, 0.95, 0.85, math.inf], start=1):
        state.step = step
        state.judge(loss, min_delta=0.1)
    assert (state.best_loss, state.best_step, state.loss_to_beat, state.evaluations_without_gain) == (0.85, 3, 0.85, 1)
    state.write(tmp_path / "state.json")
    assert TrainState.read(tmp_path / "state.json") == state
