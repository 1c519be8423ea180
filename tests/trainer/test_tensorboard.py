# SPDX-License-Identifier: Apache-2.0
"""TensorBoard reads the figures of a run, those of steps that were made again once."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.errors import ConfigError
from trainer.metrics import Record
from trainer.tensorboard import TENSORBOARD_DIRECTORY, TensorBoardSink


def step(number: int, loss: float) -> Record:
    return {"kind": "train", "step": number, "loss": loss, "loss/full": loss, "epoch": 0.5}


def curve(directory: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a curve."""
    events = EventAccumulator(str(directory / TENSORBOARD_DIRECTORY))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def write(directory: Path, *records: Record, resumed_step: int = 0) -> None:
    sink = TensorBoardSink(directory, resumed_step=resumed_step)
    for record in records:
        sink.write(record)
    sink.close()


def test_every_number_is_a_curve(tmp_path: Path) -> None:
    validation = {"kind": "validation", "step": 2, "spec": "half", "loss": 2.5, "examples": 3}
    write(tmp_path, {"kind": "start", "step": 0, "specs": ["full"]}, step(1, 4.0), step(2, 3.0), validation)
    assert curve(tmp_path, "train/loss") == [(1, 4.0), (2, 3.0)]
    assert curve(tmp_path, "train/loss/full") == [(1, 4.0), (2, 3.0)]
    assert curve(tmp_path, "validation/half/loss") == [(2, 2.5)]


def test_steps_that_are_made_again_are_shown_once(tmp_path: Path) -> None:
    write(tmp_path, step(1, 4.0), step(2, 3.0), step(3, 9.0))
    write(tmp_path, step(2, 3.0), step(3, 2.0), resumed_step=1)
    assert curve(tmp_path, "train/loss") == [(1, 4.0), (2, 3.0), (3, 2.0)]


def test_without_tensorboard_the_run_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "tensorboard":
            raise ImportError(name)
        return found(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"not installed; run pip install 'matslice\[tensorboard\]'"):
        TensorBoardSink(tmp_path, resumed_step=0)
