# SPDX-License-Identifier: Apache-2.0
"""A run that is killed anywhere and goes on is, bit for bit, the run that nothing happened to."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.run_server import IDS, RunServer, run_server
from tests.trainer.streams import write_stream
from trainer.manifest import MANIFEST_FILE, damage_of
from trainer.retention import checkpoint_at, steps_of
from trainer.sinks import METRICS_FILE, read_records

STEPS = 20
KILLS = 200
WHERE = ("idle", "accumulating", "saving")
SMALL_PART = [(2, "idle", 2), (4, "accumulating", 2), (4, "saving", 2)]
OFTEN = dict.fromkeys(WHERE, 3) | {"saving": 1}  # steps between checkpoints


@pytest.fixture(scope="module")
def server() -> Iterator[RunServer]:
    with run_server() as started:
        yield started


def tensors_of(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from tensors_of(inner, f"{prefix}.{key}")


def last_of(run: Path) -> Path:
    return checkpoint_at(run, steps_of(run)[-1])


def assert_same(one: Path, other: Path) -> None:
    """Parameters, optimizer, average, generators, counts, losses, learning rates and rows are equal to the last bit."""
    mine, theirs = last_of(one), last_of(other)
    files = {path.relative_to(mine) for path in mine.rglob("*") if path.is_file()}
    assert files == {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert any(path.suffix == ".safetensors" for path in files)
    for path in files - {Path(MANIFEST_FILE), Path("state.json")}:
        if path.suffix == ".pt":
            ours, its = (dict(tensors_of(torch.load(at / path, weights_only=True))) for at in (mine, theirs))
            assert ours.keys() == its.keys()
            assert all(torch.equal(value, its[name]) for name, value in ours.items())
        else:
            assert (mine / path).read_bytes() == (theirs / path).read_bytes()
    states = [json.loads((at / "state.json").read_text()) | {"seconds": 0} for at in (mine, theirs)]
    assert states[0] == states[1]
    assert logged(one) == logged(other)
    assert rows_of(one) == rows_of(other)


def logged(run: Path) -> list[dict[str, Any]]:
    """What a log says that does not hang on time."""
    kept = ("kind", "step", "spec", "loss", "learning_rate", "gradient_norm", "epoch")
    return [{key: record.get(key) for key in kept} for record in read_records(run / METRICS_FILE)]


def rows_of(run: Path) -> dict[int, Any]:
    """The rows and the loss of every step, each time it was taken."""
    found: dict[int, Any] = {}
    for line in (run.with_name(IDS)).read_text().splitlines():
        taken = json.loads(line)
        assert found.setdefault(taken["step"], taken) == taken
    return found


def straight(server: RunServer, room: Path, **wishes: Any) -> Path:
    """A run that nothing happens to."""
    room.mkdir(parents=True, exist_ok=True)
    assert server.run(output=str(room / "run"), **wishes) == 0
    return room / "run"


def killed_and_resumed(server: RunServer, room: Path, *ends: tuple[int, str], **wishes: Any) -> Path:
    """A run that is killed, and killed again, and goes on at last."""
    room.mkdir(parents=True)
    asked = {"output": str(room / "run")} | wishes
    for number, (step, where) in enumerate(ends):
        assert server.run(**asked, resume=number > 0, end_at=step, end=where) == -signal.SIGKILL
    assert server.run(**asked, resume=True, told=str(room / "told")) == 0, (room / "told").read_text()
    return room / "run"


@pytest.fixture(scope="module")
def short(server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps without an accident."""
    return straight(server, tmp_path_factory.mktemp("short"), max_steps=5, save_every=2)


@pytest.mark.parametrize(("step", "where", "every"), SMALL_PART)
def test_a_run_killed_at_a_step_goes_on_bit_for_bit(
    server: RunServer, short: Path, tmp_path: Path, step: int, where: str, every: int
) -> None:
    run = killed_and_resumed(server, tmp_path / "killed", (step, where), max_steps=5, save_every=every)
    assert_same(short, run)


@pytest.fixture(scope="module")
def long(server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps without an accident, and a checkpoint after each."""
    room = tmp_path_factory.mktemp("long")
    return straight(server, room, max_steps=STEPS, save_every=1, keep_checkpoints=STEPS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("where", WHERE)
def test_a_run_killed_at_every_one_of_its_steps_goes_on_bit_for_bit(
    server: RunServer, long: Path, tmp_path: Path, where: str
) -> None:
    asked = {"output": str(tmp_path / "run"), "max_steps": STEPS, "save_every": OFTEN[where], "resume": True}
    for step in range(1, STEPS + 1):
        assert server.run(**asked, end_at=step, end=where) == -signal.SIGKILL
        saved = steps_of(tmp_path / "run")
        assert saved[-1:] == ([(step - 1) // OFTEN[where] * OFTEN[where]] if step > OFTEN[where] else [])
        for one in saved:
            assert contents(checkpoint_at(tmp_path / "run", one)) == contents(checkpoint_at(long, one))
    assert server.run(**asked, told=str(tmp_path / "told")) == 0, (tmp_path / "told").read_text()
    assert_same(long, tmp_path / "run")


@pytest.mark.parametrize(
    "wishes",
    [{"average_decay": 0.9}, pytest.param({"whole": True, "average_decay": 0.5}, marks=pytest.mark.slow)],
    ids=["adapter", "whole model"],
)
def test_a_run_with_a_running_average_goes_on_bit_for_bit(
    server: RunServer, tmp_path: Path, wishes: dict[str, Any]
) -> None:
    wishes = wishes | {"max_steps": 4, "save_every": 2, "eval_every": 2, "num_validation": 3}
    same = straight(server, tmp_path / "straight", **wishes)
    assert_same(same, killed_and_resumed(server, tmp_path / "killed", (3, "idle"), **wishes))
    stored = torch.load(last_of(same) / "average.pt", weights_only=True)
    assert any(not torch.equal(own, stored["average"]["averages"][name]) for name, own in stored["trained"].items())


@pytest.fixture(scope="module")
def wishes_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Runs that read ahead: of rows that are packed, and of such that are read from a file meanwhile."""
    path = write_stream(tmp_path_factory.mktemp("data") / "rows.jsonl")
    return {"packed": {"packed": True, "workers": 2}, "streamed": {"stream": str(path), "workers": 2}}


def assert_packed(run: Path) -> None:
    """Several rows lie in most packs, of which every step takes four."""
    assert max(len(taken["rows"]) for taken in rows_of(run).values()) > 2 * 4


def test_a_streamed_run_goes_on_bit_for_bit(
    server: RunServer, tmp_path: Path, wishes_of: dict[str, dict[str, Any]]
) -> None:
    wishes = wishes_of["streamed"] | {"max_steps": 4, "save_every": 1}
    same = straight(server, tmp_path / "straight", **wishes)
    assert_packed(same)
    ends = ((2, "accumulating"), (4, "saving"))
    assert_same(same, killed_and_resumed(server, tmp_path / "killed", *ends, **wishes))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", ["packed", "streamed"])
def test_a_run_that_reads_ahead_goes_on_bit_for_bit_wherever_it_is_killed(
    server: RunServer, tmp_path: Path, wishes_of: dict[str, dict[str, Any]], kind: str, where: str
) -> None:
    wishes = wishes_of[kind] | {"max_steps": STEPS, "save_every": OFTEN[where]}
    same = straight(server, tmp_path / "straight", **wishes | {"keep_checkpoints": STEPS})
    assert_packed(same)
    if kind == "streamed":
        begun = [
            json.loads((checkpoint_at(same, step) / "state.json").read_text())["stream"] for step in steps_of(same)
        ]
        assert len({one["block"] for one in begun}) > STEPS // 4  # over the ends of blocks
        assert begun[-1]["cursors"][0][0] > 4  # and of epochs
    ends = [(step, where) for step in range(1, STEPS + 1)]
    assert_same(same, killed_and_resumed(server, tmp_path / "killed", *ends, **wishes))


def test_a_run_killed_twice_from_one_checkpoint_and_from_the_next_goes_on_bit_for_bit(
    server: RunServer, short: Path, tmp_path: Path
) -> None:
    ends = ((3, "idle"), (3, "accumulating"), (4, "saving"), (5, "idle"))
    assert_same(short, killed_and_resumed(server, tmp_path / "killed", *ends, max_steps=5, save_every=2))


def test_a_run_goes_on_from_the_end_of_an_epoch_bit_for_bit(server: RunServer, tmp_path: Path) -> None:
    # Eleven rows, and eleven in a micro-batch: every step is two epochs, so each checkpoint lies between epochs.
    wishes = {"max_steps": 3, "batch_size": 11, "save_every": 1}
    same = straight(server, tmp_path / "straight", **wishes)
    assert [record["epoch"] for record in logged(same)] == [2, 4, 6]  # two micro-batches
    assert_same(same, killed_and_resumed(server, tmp_path / "killed", (2, "idle"), **wishes))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kill_in_a_save_leaves_a_checkpoint_that_is_unreadable_or_wrong(
    server: RunServer, long: Path, tmp_path: Path
) -> None:
    wishes: dict[str, Any] = {"max_steps": STEPS, "save_every": 1}
    moments, room, killed, late, longest = random.Random(7), tmp_path / "killed", 0, 0, 0.06
    expected = {step: contents(checkpoint_at(long, step)) for step in steps_of(long)}
    assert len(expected) == STEPS
    while killed < KILLS:
        room.mkdir(exist_ok=True)
        (room / "after").unlink(missing_ok=True)
        ended = server.run(
            output=str(room / "run"), resume=True, in_save=longest * moments.random(), told=str(room / "told"), **wishes
        )
        if ended == -signal.SIGALRM:
            killed += 1
        else:
            assert ended == 0, (room / "told").read_text()
            late += 1
            longest *= 0.9  # the machine became faster
            assert late < 2 * KILLS
        for step in steps_of(room / "run"):
            whole = checkpoint_at(room / "run", step)
            assert damage_of(whole) is None
            assert contents(whole) == expected[step]
        if ended == 0 or STEPS in steps_of(room / "run"):
            shutil.rmtree(room)
        elif late < killed // 4:
            longest *= 1.02
    print(f"{killed} killed, {late} too late; at most {longest:.3f} s after a save began")


def contents(whole: Path) -> dict[str, Any]:
    """The hashes of a checkpoint's files, but of that with the time it took."""
    listed = json.loads((whole / MANIFEST_FILE).read_text())["files"]
    return {name: told["sha256"] for name, told in listed.items() if name != "state.json"}
