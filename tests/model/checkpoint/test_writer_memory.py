# SPDX-License-Identifier: Apache-2.0
"""The writer's memory is used again for the next blocks, never before a block is written and hashed."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from model.checkpoint import blocks, writer
from model.checkpoint.blocks import StoredPart
from model.checkpoint.format import StoredTensor
from model.checkpoint.output_file import OutputFile
from model.checkpoint.writer import BLOCKS_AHEAD, BLOCKS_BEHIND, Memory, write_file
from model.slicing.cuts import Kept, Placement
from model.slicing.dead_kv import FilledPart

ROWS, ROW_BYTES = 300, 40
BLOCK_BYTES = 3 * ROW_BYTES
SHA256 = hashlib.sha256


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Random rows, in ``tmp_path / "source"``; blocks hold three of them."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(writer, "BLOCK_BYTES", BLOCK_BYTES)
    content = np.random.default_rng(0).integers(0, 256, (ROWS, ROW_BYTES), dtype=np.uint8)
    (tmp_path / "source").write_bytes(content.tobytes())
    return content


def part_of(tmp_path: Path, *kept: Kept) -> StoredPart:
    stored = StoredTensor(tmp_path / "source", "whole", "U8", (ROWS, ROW_BYTES), 0)
    return StoredPart(stored, Placement("part", kept))


class Unhurried:
    """SHA-256 that takes its time, and looks at the bytes at the end of it."""

    def __init__(self) -> None:
        self.digest = SHA256()

    def update(self, data: bytes) -> None:
        time.sleep(0.002)
        self.digest.update(data)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


class Watched(Memory):
    """Memory that knows all it was made of."""

    arrays: ClassVar[dict[int, blocks.Bytes]] = {}

    def read(self, piece: writer.Piece) -> blocks.Bytes:
        block = super().read(piece)
        array = self.lent[id(block)]
        self.arrays[id(array)] = array
        return block


@pytest.mark.parametrize("slow", ["hashing", "writing", "neither"])
@pytest.mark.parametrize("columns", [(), (Kept(1, (range(4, 10), range(20, 33))),)], ids=["whole rows", "columns"])
def test_a_few_blocks_of_memory_hold_one_block_after_the_other(
    tmp_path: Path, content: np.ndarray, monkeypatch: pytest.MonkeyPatch, slow: str, columns: tuple[Kept, ...]
) -> None:

    class Slow(OutputFile):
        def write(self, content: blocks.Bytes) -> None:
            time.sleep(0.002)
            super().write(content)

    monkeypatch.setattr(writer, "Memory", Watched)
    Watched.arrays.clear()
    if slow == "writing":
        monkeypatch.setattr(writer, "OutputFile", Slow)
    if slow == "hashing":
        monkeypatch.setattr(hashlib, "sha256", Unhurried)
    told = write_file(tmp_path / "file", [part_of(tmp_path, *columns)])
    monkeypatch.undo()

    written = (tmp_path / "file").read_bytes()
    kept = content if not columns else np.concatenate([content[:, 4:10], content[:, 20:33]], axis=1)
    assert written.endswith(kept.tobytes())
    assert told == hashlib.sha256(written).hexdigest()
    assert 1 < len(Watched.arrays) <= BLOCKS_AHEAD + 1 + BLOCKS_BEHIND < ROWS // 3


def test_a_row_larger_than_a_block_gets_memory_of_its_own(
    tmp_path: Path, content: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BLOCK_BYTES", BLOCK_BYTES - 1)
    memory = Memory()
    for block in part_of(tmp_path).blocks():
        memory.take_back(memory.read(block))
    assert not memory.free
    write_file(tmp_path / "file", [part_of(tmp_path)])
    assert (tmp_path / "file").read_bytes().endswith(content.tobytes())


def test_what_needs_no_memory_is_lent_none_and_leaves_none_behind() -> None:
    memory = Memory()
    filled = FilledPart("ones", "BF16", (7,), b"\x80\x3f")
    for block in filled.blocks():
        memory.take_back(memory.read(block))
    assert not memory.free
