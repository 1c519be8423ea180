# SPDX-License-Identifier: Apache-2.0
"""A slice may be ended at any moment: its target is as it was before, or whole, and no other place looks whole.

Slices run in processes that are forked from one that has imported all they need, so that a moment is one of slicing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.reader import Checkpoint, sha256
from model.checkpoint.saving import save
from model.errors import MatsliceError
from model.slicing.lineage import read_lineage
from model.slicing.verify import verify
from tests.daily import daily
from tests.tiny import tiny_config, tiny_model

KILLS = 50
SMALL = {"name": "small", "skip_layers": [3, 4, 5]}
OLD = {"name": "old", "ffn_widths": [16]}
# Reads a request a line. A process is forked for each, and told by its number; the next line asks how it ended.
SERVER = """
import json, os, signal, sys
from pathlib import Path
from model.slicing.spec import SliceConfig
from recipes.cli import main
from recipes.slice import SliceRecipe, run

def slice_as(asked):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = 0

    def hook(event, arguments):
        nonlocal steps
        place = str(arguments[0]) if arguments else ""
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "shutil.rmtree",
                     "ctypes.dlsym") and (asked["room"] in place or event == "ctypes.dlsym"):
            steps += 1
            if steps == asked["ended_at_step"]:
                os.kill(os.getpid(), asked["by"])

    if asked["ended_at_step"]:
        sys.addaudithook(hook)
    if asked["words"]:
        return main(asked["words"])
    recipe = SliceRecipe(
        checkpoint=asked["checkpoint"], output=Path(asked["output"]), slice=SliceConfig(**asked["slice"]),
        overwrite=asked["overwrite"], max_shard_bytes=asked["max_shard_bytes"],
    )
    run(recipe)
    return 0

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = slice_as(json.loads(line))
        finally:
            os._exit(status)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Slicer:
    """Slices ``parent`` into ``room / "out"``, in processes that can be ended."""

    server: subprocess.Popen[str]
    parent: Path
    room: Path
    shard_bytes: int

    @property
    def output(self) -> Path:
        return self.room / "out"

    def begin(self, sliced: dict[str, Any] = SMALL, *, overwrite: bool = False, words: bool = False,
              at_step: int = 0, by: int = signal.SIGKILL) -> int:  # fmt: skip
        """A process that slices; ``at_step`` it ends itself, at a step that it takes in the room's files."""
        asked = {
            "checkpoint": str(self.parent), "output": str(self.output), "slice": sliced, "overwrite": overwrite,
            "max_shard_bytes": self.shard_bytes, "room": str(self.room), "ended_at_step": at_step, "by": int(by),
            "words": ["slice", f"checkpoint={self.parent}", f"output={self.output}", "slice.skip_layers=[3,4,5]",
                      f"max_shard_bytes={self.shard_bytes}", f"overwrite={overwrite}"] if words else None,
        }  # fmt: skip
        return int(self.say(json.dumps(asked)))

    def end(self) -> int:
        """Wait for the process; its exit status, or the signal that ended it, negative."""
        return int(self.say(""))

    def say(self, line: str) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()

    def slice(self, sliced: dict[str, Any] = SMALL, **how: Any) -> int:
        self.begin(sliced, **how)
        return self.end()

    def others(self) -> list[Path]:
        """What lies beside the output."""
        return [path for path in self.room.iterdir() if path != self.output]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        yield process
        process.kill()


@pytest.fixture(scope="module")
def tiny_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parents") / "tiny"
    save(tiny_model(), directory, max_shard_bytes=200_000)
    return directory


@pytest.fixture(scope="module")
def large_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 70 MB in 10 files."""
    directory = tmp_path_factory.mktemp("parents") / "large"
    config = tiny_config(
        hidden_size=256, intermediate_size=(2048,) * 9, vocab_size=8192, vocab_size_per_layer_input=8192
    )
    save(tiny_model(config), directory, max_shard_bytes=8_000_000)
    return directory


@pytest.fixture
def tiny(server: subprocess.Popen[str], tiny_parent: Path, tmp_path: Path) -> Slicer:
    return Slicer(server, tiny_parent, tmp_path, 100_000)


@pytest.fixture
def large(server: subprocess.Popen[str], large_parent: Path, tmp_path: Path) -> Slicer:
    return Slicer(server, large_parent, tmp_path, 5_000_000)


def whole(slicer: Slicer, sliced: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a slice that nobody ended, and their SHA-256."""
    undisturbed = dataclasses.replace(slicer, room=tmp_path_factory.mktemp("whole"))
    assert undisturbed.slice(sliced) == 0
    return read_lineage(undisturbed.output)["checksums"]


def check_left(slicer: Slicer, known: list[dict[str, str]], *, had_old: bool) -> bool:
    """Whether the output is there. What can be opened as a checkpoint must be one of the ``known`` ones."""
    for left in slicer.others():
        assert left.name.startswith(".out.")
        try:
            opened = Checkpoint.open(left)
        except MatsliceError:
            continue
        files = {tensor.path for tensor in opened.tensors.values()} | {left / "config.json"}
        assert {path.name: sha256(path) for path in files}.items() <= max(
            known, key=lambda files: sha256(left / "config.json") == files["config.json"]
        ).items()
    assert slicer.output.exists() or not had_old
    if not slicer.output.exists():
        return False
    verify(slicer.output, parent=slicer.parent, told=lambda _: None)
    assert read_lineage(slicer.output)["checksums"] in known
    return True


def timed(slicer: Slicer) -> float:
    """Seconds that a slice takes now, written elsewhere and left there."""
    elsewhere = dataclasses.replace(slicer, room=Path(tempfile.mkdtemp(dir=slicer.parent.parent)))
    started = time.monotonic()
    assert elsewhere.slice() == 0
    return time.monotonic() - started


@pytest.mark.slow
def test_a_slice_that_is_killed_at_any_moment_leaves_no_checkpoint_that_is_wrong(
    large: Slicer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    known = [whole(large, SMALL, tmp_path_factory), whole(large, OLD, tmp_path_factory)]
    moments = random.Random(4)
    duration, killed, number = timed(large), 0, 0
    # A machine that became less busy ends slices before their moment: those do not count, and tell how long one takes.
    while killed < KILLS:
        assert number < 4 * KILLS
        # From the second half on there is an older slice, which is to be replaced.
        had_old = killed >= KILLS // 2
        if not had_old:
            for path in [large.output] if large.output.exists() else []:
                path.rename(tmp_path_factory.mktemp("moved") / "out")
        elif not large.output.exists() or number % 5 == 0:
            assert large.slice(OLD, overwrite=True) == 0
        child = large.begin(overwrite=had_old)
        time.sleep(duration * 1.1 * moments.random())
        os.kill(child, signal.SIGKILL)
        number += 1
        if large.end() == -signal.SIGKILL:
            killed += 1
        else:
            duration = timed(large)
        check_left(large, known, had_old=had_old)
    assert large.slice(overwrite=True) == 0
    assert check_left(large, known, had_old=True)
    assert large.others() == []


@pytest.mark.parametrize("had_old", daily([False, True], True))
def test_a_slice_that_is_killed_at_any_step_leaves_no_checkpoint_that_is_wrong(
    tiny: Slicer, tmp_path_factory: pytest.TempPathFactory, *, had_old: bool
) -> None:
    known = [whole(tiny, SMALL, tmp_path_factory), whole(tiny, OLD, tmp_path_factory)]
    steps, found = 0, []
    while True:
        steps += 1
        if had_old:
            if not found or found[-1]:
                assert tiny.slice(OLD, overwrite=True) == 0
        elif tiny.output.exists():
            tiny.output.rename(tmp_path_factory.mktemp("moved") / "out")
        if tiny.slice(overwrite=had_old, at_step=steps) == 0:
            break
        is_there = check_left(tiny, known, had_old=had_old)
        found.append(is_there and read_lineage(tiny.output)["spec"]["name"] == "small")
    assert steps > 20
    assert found == sorted(found)  # from one step on it is the new one
    assert not found[0]
    assert found[-1]
    assert tiny.others() == []


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("had_old", daily([False, True], True))
@pytest.mark.parametrize("at_step", daily([1, 9, 20], 9))
def test_a_slice_that_is_interrupted_leaves_nothing(tiny: Slicer, by: int, at_step: int, *, had_old: bool) -> None:
    if had_old:
        assert tiny.slice(OLD) == 0
    before = read_lineage(tiny.output) if had_old else None
    assert tiny.slice(overwrite=had_old, words=True, at_step=at_step, by=by) == 128 + by
    assert tiny.others() == []
    assert tiny.output.exists() is had_old
    assert not had_old or read_lineage(tiny.output) == before
