# SPDX-License-Identifier: Apache-2.0
"""Streams of tensors to files: sized, hashed and indexed as they are written, or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from model.checkpoint import writer
from model.checkpoint.blocks import Bytes
from model.checkpoint.output_file import OutputFile
from model.checkpoint.reader import INDEX_FILE, WEIGHTS_FILE, Checkpoint
from model.checkpoint.writer import BLOCKS_AHEAD, READERS, shards, write_checkpoint
from model.errors import CheckpointError
from tests.tiny import tiny_config

CONFIG = tiny_config()


@dataclass(frozen=True)
class Numbers:
    """A float32 tensor that counts its entries, in pieces of two; it can be told to fail."""

    name: str
    size: int
    fails: bool = False
    begun: list[str] = field(default_factory=list)  # names of pieces that were asked for

    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def nbytes(self) -> int:
        return 4 * self.size

    def blocks(self) -> Iterator[NumbersPiece]:
        for first in range(0, self.size, 2):
            yield NumbersPiece(self, range(first, min(first + 2, self.size)))


@dataclass(frozen=True)
class NumbersPiece:
    """Some entries of it."""

    part: Numbers
    entries: range

    def read(self) -> Bytes:
        self.part.begun.append(self.part.name)
        if self.part.fails and self.entries.start:
            raise CheckpointError("the disk is on fire")
        return np.array(self.entries, dtype="<f4").view(np.uint8)


def numbers(*sizes: int) -> list[Numbers]:
    return [Numbers(f"t{position}", size) for position, size in enumerate(sizes)]


def sizes_of(directory: Path) -> dict[str, list[str]]:
    """The names in each weight file."""
    return {path.name: sorted(load_file(path)) for path in sorted(directory.glob("*.safetensors"))}


def test_shards_stay_below_the_limit_unless_they_hold_a_single_tensor() -> None:
    grouped = [[part.name for part in group] for group in shards(numbers(2, 2, 9, 1, 1), 16)]
    assert grouped == [["t0", "t1"], ["t2"], ["t3", "t4"]]


def test_files_hold_what_was_streamed_into_them(tmp_path: Path) -> None:
    sizes = (2, 2, 9, 1, 0, 1)
    write_checkpoint(numbers(*sizes), CONFIG, tmp_path / "out", max_shard_bytes=16)
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sizes_of(tmp_path / "out") == dict(zip(names, (["t0", "t1"], ["t2"], ["t3", "t4", "t5"]), strict=True))
    for name in names:
        for tensor_name, tensor in load_file(tmp_path / "out" / name).items():
            assert torch.equal(tensor, torch.arange(float(sizes[int(tensor_name[1:])])))
        with safe_open(tmp_path / "out" / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_the_index_names_every_tensor_and_the_size_of_all(tmp_path: Path) -> None:
    write_checkpoint(numbers(2, 2, 9), CONFIG, tmp_path / "out", max_shard_bytes=16)
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == 4 * 13
    homes = {name: file for file, names in sizes_of(tmp_path / "out").items() for name in names}
    assert index["weight_map"] == homes
    assert Checkpoint.open(tmp_path / "out").names() == ("t0", "t1", "t2")


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    write_checkpoint(numbers(2, 2), CONFIG, tmp_path / "out", max_shard_bytes=16)
    assert sizes_of(tmp_path / "out") == {WEIGHTS_FILE: ["t0", "t1"]}
    assert not (tmp_path / "out" / INDEX_FILE).exists()


def test_extras_are_told_the_checksums_of_the_files_as_they_are_on_disk(tmp_path: Path) -> None:
    told: dict[str, str] = {}

    def extras(directory: Path, hashes: Mapping[str, str]) -> None:
        assert (directory / "config.json").is_file()
        told.update(hashes)

    write_checkpoint(numbers(1001, 5, 3), CONFIG, tmp_path / "out", max_shard_bytes=32, extras=extras)
    files = (tmp_path / "out").glob("*.safetensors")
    assert told == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert len(told) == 2


def test_progress_is_told_in_bytes_of_all_files(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_checkpoint(
        numbers(3, 2, 4), CONFIG, tmp_path / "out", max_shard_bytes=20, progress=lambda *of: told.append(of)
    )
    assert told == [(done, 36) for done in (8, 12, 20, 28, 36)]


def test_no_more_is_read_than_a_few_blocks_ahead_of_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (part,) = numbers(200)
    unread: list[int] = []

    class Slow(OutputFile):
        def write(self, content: Bytes) -> None:
            threading.Event().wait(0.001)
            if len(content) == 8:  # not the header
                unread.append(len(part.begun))
            super().write(content)

    monkeypatch.setattr(writer, "OutputFile", Slow)
    write_checkpoint([part], CONFIG, tmp_path / "out")
    ahead = [begun - written for written, begun in enumerate(unread)]
    assert 1 < max(ahead) <= BLOCKS_AHEAD + READERS


def test_what_the_system_takes_in_pieces_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, rest: write(descriptor, rest[:3]))
    write_checkpoint(numbers(5), CONFIG, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / WEIGHTS_FILE)["t0"], torch.arange(5.0))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_size_of_files_that_holds_nothing_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(CheckpointError, match=f"max_shard_bytes is {limit}; it must be at least 1, and is in bytes"):
        write_checkpoint(numbers(2), CONFIG, tmp_path / "out", max_shard_bytes=limit)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, asked = numbers(2, 3), []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=19)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: 0.00 GB are to be written, but the disk has 0.00 GB left"):
        write_checkpoint(parts, CONFIG, tmp_path / "out", max_shard_bytes=8)
    assert asked
    assert [part.begun for part in parts] == [[], []]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [8, 1000])  # bytes: the same name in two files, or in one
def test_a_name_that_comes_twice_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(CheckpointError, match="'t0' comes twice"):
        write_checkpoint([*numbers(2), *numbers(2)], CONFIG, tmp_path / "out", max_shard_bytes=limit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [False, True])
def test_a_source_that_fails_leaves_what_was_there(tmp_path: Path, *, existing: bool) -> None:
    if existing:
        write_checkpoint(numbers(1), CONFIG, tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    parts = [*numbers(6, 6), Numbers("broken", 9, fails=True)]
    with pytest.raises(CheckpointError, match="the disk is on fire"):
        write_checkpoint(parts, CONFIG, tmp_path / "out", max_shard_bytes=30, overwrite=existing)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * existing
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_extras_that_fail_leave_no_directory(tmp_path: Path) -> None:
    def extras(directory: Path, _: Mapping[str, str]) -> None:
        assert (directory / WEIGHTS_FILE).is_file()
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_checkpoint(numbers(1), CONFIG, tmp_path / "out", extras=extras)
    assert list(tmp_path.iterdir()) == []
