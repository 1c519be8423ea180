# SPDX-License-Identifier: Apache-2.0
"""Figures reach the log, the console and Weights & Biases, each record once."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
import wandb
from rich.console import Console

from model.errors import ConfigError
from tests.trainer.parts import tiny_trainer, trainer_config
from trainer.config import WandbMode
from trainer.curve import draw_loss_curve
from trainer.metrics import Clock, Record
from trainer.sinks import ConsoleSink, JsonlSink, WandbSink, open_sinks, read_records

TRAIN: Record = {
    "kind": "train", "step": 5, "loss": 2.5, "learning_rate": 1e-3, "tokens_per_second": 1234.0,
    "supervised_tokens_per_second": 321.0, "memory_bytes": 3 * 2**30, "eta_seconds": 75.0,
}  # fmt: skip
START: Record = {
    "kind": "start", "step": 0, "train_rows": 90, "train_rows_skipped": 10, "validation_rows": 8,
    "validation_rows_skipped": 2, "steps_per_epoch": 22.5, "trainable_parameters": 1000, "total_parameters": 20000,
    "modalities": ["text", "audio"],
    "specs": ["full", "narrow"], "train_rows_truncated": 3, "train_rows_with_images": 20, "train_rows_with_audio": 0,
    "train_rows_bad": 0, "validation_rows_bad": 0,
    "validation_rows_truncated": 0, "validation_rows_with_images": 0, "validation_rows_with_audio": 4,
}  # fmt: skip
VALIDATION: Record = {"kind": "validation", "step": 5, "spec": "e2b", "loss": 2.0, "perplexity": 7.39, "accuracy": 0.25}


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "log", resumed_step=0)
    sink.write(TRAIN)
    assert list(read_records(tmp_path / "log")) == [TRAIN]


def test_lines_after_the_resumed_step_and_half_lines_are_cut(tmp_path: Path) -> None:
    lines = [json.dumps(TRAIN | {"step": step}) for step in (1, 2, 3)]
    (tmp_path / "log").write_text("\n".join(lines) + '\n{"kind": "tra')
    JsonlSink(tmp_path / "log", resumed_step=2).write(TRAIN)
    assert [record["step"] for record in read_records(tmp_path / "log")] == [1, 2, 5]


def test_without_a_terminal_there_is_a_plain_line_per_record() -> None:
    text = io.StringIO()
    sink = ConsoleSink(max_steps=10, resumed_step=0, console=Console(file=text, width=60))
    sink.write(TRAIN)
    sink.write(VALIDATION)
    sink.close()
    assert text.getvalue().splitlines() == [
        "step 5: loss 2.5000  lr 1.00e-03  1234 tokens/s (321 supervised)  3.00 GiB  1:15 to go",
        "step 5: validation e2b: loss 2.0000, perplexity 7.39, accuracy 0.250",
    ]


def test_on_a_terminal_there_is_a_bar_with_the_last_figures() -> None:
    text = io.StringIO()
    sink = ConsoleSink(max_steps=10, resumed_step=0, console=Console(file=text, width=140, force_terminal=True))
    sink.write(TRAIN)
    sink.close()
    assert "5/10" in text.getvalue()
    assert "loss 2.5000" in text.getvalue()


def test_processes_other_than_the_first_have_no_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trainer_config(tmp_path)
    run = tiny_trainer(config).run
    monkeypatch.setattr(type(run.accelerator), "is_main_process", False)
    assert open_sinks(config, run, console=Console(quiet=True), settings={}) == []


def test_an_offline_run_of_weights_and_biases_is_kept_on_disk(tmp_path: Path) -> None:
    sink = WandbSink(tmp_path, mode=WandbMode.offline, project="matslice", config={"seed": 1})
    sink.write(TRAIN)
    sink.write(VALIDATION)
    sink.close()
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    wait_for(b"train/loss", stored)
    wait_for(b"validation/e2b/accuracy", stored)


def wait_for(text: bytes, path: Path, seconds: float = 60) -> None:
    """Weights & Biases writes in a process of its own, which on a busy machine lags behind."""
    deadline = time.monotonic() + seconds
    while text not in path.read_bytes():
        assert time.monotonic() < deadline, f"{text!r} never came"
        time.sleep(0.1)


def test_a_curve_can_be_drawn_of_any_log(tmp_path: Path) -> None:
    for name, records in (("none", []), ("train", [TRAIN]), ("both", [TRAIN, VALIDATION])):
        draw_loss_curve(records, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_the_bar_moves_with_every_step() -> None:
    text = io.StringIO()
    sink = ConsoleSink(max_steps=10, resumed_step=0, console=Console(file=text, width=140, force_terminal=True))
    sink.tick(3, 1.25)
    sink.close()
    assert "3/10" in text.getvalue()
    assert "1.2500" in text.getvalue()


def test_what_a_run_is_made_of_is_said_once_for_every_beginning(tmp_path: Path) -> None:
    text = io.StringIO()
    sink = ConsoleSink(max_steps=10, resumed_step=0, console=Console(file=text, width=60))
    sink.write(START)
    sink.close()
    assert text.getvalue() == (
        "step 0: 90 rows (10 too long, 3 cut short, 20 with images), validation 8 (2 too long, 4 with sound);"
        " 22.5 steps per epoch; 1,000 of 20,000 parameters (text and audio); trains full, narrow\n"
    )
    for _ in range(2):
        log = JsonlSink(tmp_path / "log", resumed_step=0)
        log.write(START)
    assert list(read_records(tmp_path / "log")) == [START]
    draw_loss_curve([START, TRAIN], tmp_path / "loss.png")


def test_weights_and_biases_without_a_key_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise wandb.Error("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(
        ConfigError, match=r"trainer\.wandb is online, but .*run 'wandb login', or set trainer\.wandb=off"
    ):
        WandbSink(tmp_path, mode=WandbMode.online, project="matslice", config={})


def test_the_time_left_counts_all_time_since_the_run_was_begun_or_resumed() -> None:
    clock = Clock(first_step=4, since=time.perf_counter() - 30)
    # The clock goes on while it is read.
    assert clock.seconds_left(7, 12) == pytest.approx(50, abs=5)
    assert clock.seconds_left(12, 12) == 0
