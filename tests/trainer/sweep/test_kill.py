# SPDX-License-Identifier: Apache-2.0
"""A sweep killed at any moment, however often, comes to the rows of one that was left alone: none twice, none lost."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.sweep.swept import SPECS, Server, serving, swept, tasks, timeless
from trainer.sweep.row import Row, read_rows
from trainer.sweep.store import ITEMS, ROWS_FILE

NUM_WRITES = 5 + 1 + 3 + 1  # batches and rows of either task


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("left_alone")
    swept(directory)
    return directory


def found_of(directory: Path) -> dict[str, dict]:
    """What was found of each batch under each sub-model, by file; each stands there once."""
    files = {}
    for path in (directory / ITEMS).glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        keys = Counter((line["batch"], line["spec"]) for line in lines)
        assert set(keys.values()) == {1}
        files[path.name] = {(line["batch"], line["spec"]): line["found"] for line in lines}
    return files


def rows_in(directory: Path) -> list[Row]:
    return [row for _, row in read_rows(directory / ROWS_FILE)]


def check_same(killed: Path, left_alone: Path) -> None:
    rows = rows_in(killed)
    assert timeless(rows) == timeless(rows_in(left_alone))
    assert Counter(row.key for row in rows) == Counter((name, task.name) for task in tasks() for name in SPECS)
    assert found_of(killed) == found_of(left_alone)
    # And of those that go on with it, none has anything left to do.
    before = (killed / ROWS_FILE).read_bytes()
    assert timeless(swept(killed)) == timeless(rows)
    assert (killed / ROWS_FILE).read_bytes() == before


def kill_at_random(server: Server, directory: Path, *, kills: int, seconds: float, seed: int) -> int:
    """Kill sweeps of ``directory`` after random times until one gets through; how many were killed."""
    moments, killed = random.Random(seed), 0
    while killed < kills:
        if server.run(directory, seconds=moments.uniform(0, seconds)) != -signal.SIGKILL:
            return killed
        killed += 1
    assert server.run(directory) == 0
    return killed


def check_killed(server: Server, left_alone: Path, directory: Path, *, kills: int, each: int) -> None:
    """Kill sweeps at random moments, each up to so many times, until there were so many kills in all."""
    assert server.run(directory / "first") == 0  # it also waits until the server has begun
    began = time.perf_counter()
    assert server.run(directory / "timed") == 0
    seconds, killed = time.perf_counter() - began, 0
    check_same(directory / "timed", left_alone)
    for seed in range(20 * kills):
        if killed < kills:
            killed += kill_at_random(server, directory / str(seed), kills=each, seconds=seconds, seed=seed)
            check_same(directory / str(seed), left_alone)
    assert killed >= kills


def test_sweeps_killed_at_random_moments(server: Server, left_alone: Path, tmp_path: Path) -> None:
    check_killed(server, left_alone, tmp_path, kills=2, each=2)


def test_a_sweep_killed_within_each_of_its_writes(server: Server, left_alone: Path, tmp_path: Path) -> None:
    """Each process writes its first piece again, which the one before left torn, and dies in the next."""
    for write in range(NUM_WRITES):
        assert server.run(tmp_path, written=1 if write == 0 else 2) == -signal.SIGKILL
    assert server.run(tmp_path) == 0
    check_same(tmp_path, left_alone)


def test_sub_models_added_after_a_kill(server: Server, left_alone: Path, tmp_path: Path) -> None:
    assert server.run(tmp_path, specs=["short"], written=4) == -signal.SIGKILL
    assert server.run(tmp_path, written=8) == -signal.SIGKILL
    assert server.run(tmp_path) == 0
    assert found_of(tmp_path) == found_of(left_alone)
    rows = {row.key: row for row in rows_in(tmp_path)}
    in_order = [rows[row.key] for row in rows_in(left_alone)]
    assert timeless(in_order) == timeless(rows_in(left_alone))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sweeps_killed_at_very_many_random_moments(server: Server, left_alone: Path, tmp_path: Path) -> None:
    check_killed(server, left_alone, tmp_path, kills=24, each=6)
