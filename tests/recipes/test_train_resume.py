# SPDX-License-Identifier: Apache-2.0
"""``matslice train resume=RUN_DIR`` needs nothing else, refuses what would change the run, and forks it if told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from recipes.cli import main
from tests.trainer.parts import losses, write_jsonl


@pytest.fixture
def stopped(train: Callable[..., int], tmp_path: Path) -> Path:
    """A run of four steps that was killed after two; the whole one is beside it."""
    assert train("trainer.max_steps=4", "trainer.save_every=2") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "whole", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000004")
    (tmp_path / "run" / "weights").unlink()
    (tmp_path / "run" / "weights").symlink_to("checkpoints/step_000002/weights")
    return tmp_path / "run"


def weights_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "weights").glob("*.safetensors"))}


def test_a_run_goes_on_with_nothing_repeated(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={stopped}", "trainer.keep_checkpoints=1"]) == 0
    assert losses(stopped) == losses(tmp_path / "whole")
    assert weights_of(stopped) == weights_of(tmp_path / "whole")
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step_000004"]
    written = OmegaConf.load(stopped / "config.yaml")
    assert written.resume is None
    assert not written.trainer.resume
    (stopped / "summary.json").unlink()
    log = (stopped / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["train", f"resume={stopped}"]) == 0  # at its end, and it stays there
    out, err = capsys.readouterr()
    assert f"adapter after 4 steps: {stopped / 'weights'}" in out
    assert "nothing left to do: 4 of 4 steps are done, and a run cannot get more of them" in err
    assert f"matslice train resume={stopped} fork=true trainer.output=…" in err
    assert (stopped / "metrics.jsonl").read_bytes() == log
    assert (stopped / "summary.json").is_file()


def test_a_run_that_was_moved_goes_on_where_it_is(stopped: Path, tmp_path: Path) -> None:
    moved = stopped.rename(tmp_path / "moved, to (another) place")
    assert main(["train", f"resume={moved}"]) == 0
    assert losses(moved) == losses(tmp_path / "whole")
    assert not stopped.exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trainer.max_steps=5", "trainer.max_steps: was 4, now 5; a run that goes on cannot change it"),
        ("adapter=none", "adapter: was another when the run was begun, now none; a run that goes on cannot change it"),
        ("data.pack_tokens=4096", "data.pack_tokens: was null, now 4096; a run that goes on cannot change it"),
        ("trainer.seed=1", "trainer.seed: was 0, now 1"),
        ("optim.learning_rate=0.5", "optim.learning_rate: was "),
        ("adapter.rank=3", "adapter.rank: was 16, now 3"),
        ("schedule=constant", "schedule: was another when the run was begun, now constant;"),
        ("trainer.output=elsewhere", "trainer.output: was "),
        ("experiment=demo", "experiment=demo: beside resume=… give single values"),
        ("trainer.batch_size=1", "a step of this run takes 2 rows, now it would take 1 (1 processes × batch_size 1"),
        ("trainer.log_evry=5", "did you mean 'log_every'?"),
    ],
)
def test_what_a_run_cannot_change_is_refused_by_its_key(
    stopped: Path, capsys: pytest.CaptureFixture[str], word: str, told: str
) -> None:
    before = weights_of(stopped)
    assert main(["train", f"resume={stopped}", word]) == 2
    assert told in capsys.readouterr().err
    assert weights_of(stopped) == before


def test_other_data_under_the_same_name_is_refused(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"messages": [{"role": "user", "content": "say abc"}, {"role": "assistant", "content": "abc"}]}
    file = write_jsonl(tmp_path / "own.jsonl", [row] * 4)
    assert train(f"data.train=[{file}]") == 0
    write_jsonl(file, [row] * 5)
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 2
    assert "this is another run" in capsys.readouterr().err


def test_no_run_at_all_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={tmp_path / 'nothing'}"]) == 2
    assert "is not the directory of a run" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("trainer: {no_such_key: 1}\n")
    assert main(["train", f"resume={tmp_path}"]) == 2
    assert "config.yaml: not the config of a run" in capsys.readouterr().err
    assert main(["train", "fork=true"]) == 2
    assert "fork=true needs the run to start from" in capsys.readouterr().err


def test_a_fork_starts_anew_from_the_weights_of_another_run(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"resume={stopped}", "fork=true"]) == 2
    assert "give a directory of its own, as trainer.output=" in capsys.readouterr().err
    fork = tmp_path / "fork"
    words = [f"resume={stopped}", "fork=true", f"trainer.output={fork}", "trainer.keep_checkpoints=9"]
    assert main(["train", *words, "optim.learning_rate=0.03", "trainer.max_steps=3"]) == 0
    first = fork / "checkpoints" / "step_000000"
    name = "adapter_model.safetensors"
    assert (first / "weights" / name).read_bytes() == (stopped / "weights" / name).read_bytes()
    assert torch.load(first / "optimizer.pt", weights_only=True)["state"] == {}
    assert json.loads((fork / "run.json").read_text())["lineage"] == {"forked_from": str(stopped), "step": 2}
    assert len(losses(fork)) == 3
    # A fork is a run like any other: it goes on by itself, without the one that it came from.
    shutil.rmtree(stopped)
    shutil.copytree(fork, tmp_path / "killed", symlinks=True)
    for step in (2, 3):
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / f"step_{step:06d}", ignore_errors=True)
    assert main(["train", f"resume={tmp_path / 'killed'}"]) == 0
    assert losses(tmp_path / "killed") == losses(fork)
    assert weights_of(tmp_path / "killed") == weights_of(fork)


def test_epochs_are_counted_in_steps(train: Callable[..., int], tmp_path: Path) -> None:
    words = ["trainer.max_steps=null", "trainer.batch_size=5", "trainer.epochs=1.5", "data.packing=false"]
    assert train(*words) == 0
    assert len(losses(tmp_path / "run")) == 4  # 12 rows, 18 of them, 5 at a time
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run"]["trainer"]["max_steps"] == 4
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.max_steps=null"], "trainer.max_steps and trainer.epochs are both null"),
        (["trainer.epochs=-1"], "trainer.epochs is -1"),
        (["trainer.keep_best=true"], "trainer.keep_best needs a validation loss"),
        (["trainer.early_stopping.patience=0"], "trainer.early_stopping.patience is 0; it must be at least 1"),
        (["trainer.early_stopping.patience=2"], "trainer.early_stopping needs a validation loss"),
        (["trainer.monitor=big"], "trainer.monitor is 'big'; measured are full"),
    ],
)
def test_an_end_that_cannot_be_meant_is_refused(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert train(*words) == 2
    assert told in capsys.readouterr().err
