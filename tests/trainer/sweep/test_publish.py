# SPDX-License-Identifier: Apache-2.0
"""A sweep's rows on Weights & Biases, offline, and in TensorBoard's files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.errors import ConfigError
from model.slicing.spec import SliceSpec
from tests.tiny import TINY_TEXT, tiny_config
from tests.trainer.parts import SLICES
from trainer.config import WandbMode
from trainer.sweep.publish import publish
from trainer.sweep.row import Figure, Row, sizes_of

SPECS = [SliceSpec.full(TINY_TEXT), *(SliceSpec.resolve(SLICES[name], TINY_TEXT) for name in ("narrow", "short"))]


def a_row(spec: SliceSpec, task: str, **metrics: float) -> Row:
    figures = {
        name: Figure(value=value, low=value - 0.25, high=math.nan, unit="nats", higher_is_better=False)
        for name, value in metrics.items()
    }  # fmt: skip
    return Row(
        spec=spec, task=task, metrics=figures, num_items=7, seconds=0.5, seconds_together=1.5, peak_memory_bytes=12,
        model="abc", data="def", seed=3, confidence=0.95, versions={"torch": "2"},
        **dataclasses.asdict(sizes_of(tiny_config(), spec)),
    )  # fmt: skip


ROWS = [
    *(a_row(spec, "spelling", loss=2.5 + number, accuracy=0.5) for number, spec in enumerate(SPECS)),
    *(a_row(spec, "speech | heard", wer=math.nan if number else 0.125) for number, spec in enumerate(SPECS)),
]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's, with a report; what Weights & Biases keeps for all runs is kept in here."""
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "kept"))
    place = tmp_path / "my sweep (1)"
    place.mkdir()
    (place / "report.html").write_text("<p>told</p>")
    (place / "half.tmp").write_text("no report")
    return place


def in_wandb(rows: list[Row], directory: Path) -> None:
    publish(rows, directory, wandb=WandbMode.offline, project="matslice", tensorboard=False)


def test_each_task_has_a_table_and_a_plot_over_effective_parameters(directory: Path) -> None:
    in_wandb(ROWS, directory)
    (run,) = (directory / "wandb").glob("offline-run-*")
    tables = {}
    for file in run.rglob("*.table.json"):
        table = json.loads(file.read_text())
        assert "loss" in table["columns"] or "wer" in table["columns"]
        tables.setdefault("loss" if "loss" in table["columns"] else "wer", table)
    by_name = [dict(zip(tables["loss"]["columns"], line, strict=True)) for line in tables["loss"]["data"]]
    assert [(line["sub-model"], line["loss"]) for line in by_name] == sorted(
        ((row.spec.name, row.metrics["loss"].value) for row in ROWS if row.task == "spelling"),
        key=lambda one: next(row.effective_parameters for row in ROWS if row.spec.name == one[0]),
    )
    assert by_name[0]["loss low"] == by_name[0]["loss"] - 0.25
    heard = [line[tables["wer"]["columns"].index("wer")] for line in tables["wer"]["data"]]
    assert sorted(heard, key=str) == [0.125, None, None]
    stored = next(run.glob("*.wandb")).read_bytes()
    for text in (b"frontier/spelling", b"frontier/speech | heard", b"report.html", b"sweep-my-sweep-1-"):
        assert text in stored
    assert b"half.tmp" not in stored


def test_a_sweep_that_is_published_again_is_the_same_run(directory: Path) -> None:
    in_wandb(ROWS[:1], directory)
    name = (directory / "wandb_id").read_text()
    in_wandb(ROWS, directory)
    runs = list((directory / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert all(f"-{name}" in place.name for place in runs)  # which wandb sync puts together


def test_a_key_that_is_missing_is_told_as_a_sweep_has_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise wandb.Error("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"^wandb is online, but .*run 'wandb login', or set wandb=offline"):
        publish(ROWS, directory, wandb=WandbMode.online, project="matslice", tensorboard=False)


def test_tensorboard_has_curves_over_effective_parameters_and_a_line_for_each_sub_model(directory: Path) -> None:
    for rows in (ROWS[:2], ROWS):  # the second time in the place of the first
        publish(rows, directory, wandb=WandbMode.off, project="matslice", tensorboard=True)
    assert not (directory / "wandb").exists()
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    expected = sorted((row.effective_parameters, row.metrics["loss"].value) for row in ROWS if row.task == "spelling")
    assert sorted((event.step, event.value) for event in events.Scalars("spelling/loss")) == expected
    assert [event.value for event in events.Scalars("speech | heard/wer")] == [0.125]
    (text,) = events.Tensors("sweep/spelling/text_summary")
    assert "| narrow |" in text.tensor_proto.string_val[0].decode()
    lines = [place for place in (directory / "tensorboard").iterdir() if place.is_dir()]
    assert len(lines) == len(SPECS)
    full = EventAccumulator(str(next(place for place in lines if place.name.endswith("-full"))))
    full.Reload()
    assert "_hparams_/session_start_info" in full.summary_metadata
    assert full.Scalars("spelling/loss")[0].value == 2.5


def test_nothing_is_published_unasked_or_of_nothing(directory: Path) -> None:
    before = sorted(directory.iterdir())
    publish(ROWS, directory, wandb=WandbMode.off, project="matslice", tensorboard=False)
    publish([], directory, wandb=WandbMode.offline, project="matslice", tensorboard=True)
    assert sorted(directory.iterdir()) == before
