# SPDX-License-Identifier: Apache-2.0
"""A run that is asked to stop finishes its step, saves, and says so by its exit status; before, it just ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.parts import losses
from tests.trainer.run_server import RunServer, run_server
from trainer.sinks import read_records

FOUR = ["trainer.max_steps=4", "trainer.batch_size=2", "trainer.log_every=1", "schedule.warmup_steps=0"]


@pytest.fixture(scope="module")
def server() -> Iterator[RunServer]:
    with run_server() as started:
        yield started


@pytest.fixture
def words(weights: Path, chat: Path, tmp_path: Path) -> list[str]:
    """``matslice train`` for four steps on the tiny checkpoint."""
    return ["train", f"checkpoint={weights}", f"data.train=[{chat}]", f"data.validation=[{chat}]", "trainer=cpu",
            f"trainer.output={tmp_path / 'run'}", "trainer.eval_every=2", "trainer.save_every=null", *FOUR]  # fmt: skip


def ask(
    server: RunServer, words: list[str], told: Path, *numbers: int, at_step: int = 0, before: bool = False
) -> tuple[int, str]:
    """How a run ends that is sent signals, and what it says."""
    ended = server.run(words=words, at_step=at_step, numbers=[*numbers], before=before, told=str(told))
    return ended, told.read_text(encoding="utf-8")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_step_be_finished_and_saved(
    server: RunServer, words: list[str], tmp_path: Path, number: int, status: int
) -> None:
    ended, told = ask(server, words, tmp_path / "told", number, at_step=1)
    assert ended == status, told
    run = tmp_path / "run"
    # It came after step 1, when step 2 could no longer be kept from being begun.
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000002"]
    assert f"stopped by {signal.Signals(number).name} after a checkpoint was written" in told
    assert f"matslice train resume={run}" in told
    measured = [record["step"] for record in read_records(run / "metrics.jsonl") if record["kind"] == "validation"]
    assert measured == [0]  # there may be no time for it at the end
    whole = [*words, f"trainer.output={tmp_path / 'whole'}"]
    whole.remove(f"trainer.output={run}")
    assert ask(server, ["train", f"resume={run}"], tmp_path / "told")[0] == 0
    assert ask(server, whole, tmp_path / "told")[0] == 0
    assert losses(run) == losses(tmp_path / "whole")
    found = sorted(line for line in (run / "metrics.jsonl").read_text().splitlines() if 'validation"' in line)
    same = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert found == sorted(line for line in same if 'validation"' in line)  # what was left out was made up for


def test_a_second_interrupt_ends_the_run_at_once(server: RunServer, words: list[str], tmp_path: Path) -> None:
    ended, told = ask(server, words, tmp_path / "told", signal.SIGINT, signal.SIGINT, at_step=1)
    assert ended == 130
    assert "interrupted" in told
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_ends_the_run_at_once(
    server: RunServer, words: list[str], tmp_path: Path, number: int, status: int
) -> None:
    ended, told = ask(server, words, tmp_path / "told", number, before=True)
    assert ended == status
    assert "Traceback" not in told
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert ask(server, words, tmp_path / "told")[0] == 0  # nothing is in the way of beginning again
