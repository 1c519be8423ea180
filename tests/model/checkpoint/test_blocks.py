# SPDX-License-Identifier: Apache-2.0
"""Parts of stored tensors in blocks of bounded size: the bytes that indexing the whole tensor gives."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import blocks
from model.checkpoint.blocks import StoredPart
from model.checkpoint.format import ITEM_BYTES, StoredTensor
from model.errors import CheckpointError
from model.slicing.cuts import Kept, Placement
from model.slicing.module import take
from tests.laws.drawn import scratch

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
START = 13  # where tensors lie in the files here: not aligned


@dataclass(frozen=True)
class Request:
    """One read: how many bytes from where on."""

    start: int
    nbytes: int


@st.composite
def ranges(draw: st.DrawFn, size: int) -> tuple[range, ...]:
    """Some entries of an axis, at least one: ascending ranges that do not touch."""
    kept = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    edges = [at for at, (left, right) in enumerate(zip([False, *kept], [*kept, False], strict=True)) if left != right]
    return tuple(map(range, edges[::2], edges[1::2]))


@st.composite
def parts(draw: st.DrawFn) -> tuple[str, tuple[int, ...], Placement]:
    """Any dtype, any shape up to four axes, anything kept of the first two."""
    shape = draw(st.lists(st.integers(1, 12), max_size=2)) + draw(st.lists(st.integers(1, 3), max_size=2))
    cut = [axis for axis in range(min(2, len(shape))) if draw(st.booleans())]
    kept = tuple(Kept(axis, draw(ranges(shape[axis]))) for axis in cut)
    return draw(st.sampled_from(sorted(ITEM_BYTES))), tuple(shape), Placement("part", kept)


def stored(path: Path, dtype: str, shape: tuple[int, ...]) -> tuple[StoredTensor, torch.Tensor]:
    """A tensor of random bytes in a file, and those bytes with an axis for an entry's."""
    count = math.prod(shape) * ITEM_BYTES[dtype]
    content = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    path.write_bytes(bytes(START) + content.numpy().tobytes() + b"behind")
    return StoredTensor(path, "whole", dtype, shape, START), content.view(*shape, ITEM_BYTES[dtype])


@contextmanager
def watched(block_bytes: int, gap_bytes: int) -> Iterator[list[Request]]:
    """What is asked of files, under limits as small as the tensors here."""
    asked: list[Request] = []
    preadv = os.preadv

    def watch(descriptor: int, buffers: list[memoryview], at: int) -> int:
        asked.append(Request(at, sum(map(len, buffers))))
        return preadv(descriptor, buffers, at)

    with (
        patch.object(blocks, "BLOCK_BYTES", block_bytes),
        patch.object(blocks, "GAP_BYTES", gap_bytes),
        patch.object(os, "preadv", watch),
    ):
        yield asked


@given(parts(), st.integers(1, 200), st.integers(0, 100))
def test_blocks_one_behind_the_other_are_the_part(
    drawn: tuple[str, tuple[int, ...], Placement], block_bytes: int, gap_bytes: int
) -> None:
    dtype, shape, placement = drawn
    with scratch() as directory, watched(block_bytes, gap_bytes) as asked:
        tensor, content = stored(directory / "file", dtype, shape)
        part = StoredPart(tensor, placement)
        expected = take(placement, content).contiguous().reshape(-1).numpy()
        read = [block.read() for block in part.blocks()]
        assert np.array_equal(np.concatenate(read), expected)
        assert part.nbytes == len(expected) == sum(block.nbytes for block in part.blocks())
        assert [request.nbytes for request in asked] == [block.nbytes_read for block in part.blocks()]

        into = np.zeros(part.nbytes, dtype=np.uint8)
        at = 0
        for block in part.blocks():
            given = into[at : at + block.nbytes]
            assert block.read(into=given) is given
            at += block.nbytes
        assert np.array_equal(into, expected)


@given(parts(), st.integers(1, 200), st.integers(0, 100))
def test_requests_are_of_bounded_size_and_ask_for_little_that_is_left_out(
    drawn: tuple[str, tuple[int, ...], Placement], block_bytes: int, gap_bytes: int
) -> None:
    dtype, shape, placement = drawn
    rows = {kept.axis: kept.ranges for kept in placement.kept}.get(0, (range(shape[0] if shape else 1),))
    with scratch() as directory, watched(block_bytes, gap_bytes) as asked:
        tensor, _ = stored(directory / "file", dtype, shape)
        for block in StoredPart(tensor, placement).blocks():
            block.read()
    row_bytes = tensor.nbytes // (shape[0] if shape else 1)
    assert max(request.nbytes for request in asked) <= max(block_bytes, row_bytes)
    needed_bytes, gaps = sum(map(len, rows)) * row_bytes, len(rows) - 1
    assert needed_bytes <= sum(request.nbytes for request in asked) <= needed_bytes + gaps * gap_bytes
    ends = [request.start + request.nbytes for request in asked]
    assert all(end <= later.start for end, later in zip(ends, asked[1:], strict=False))  # nothing is read twice


def test_neighbours_too_near_for_a_request_of_their_own_are_read_together(tmp_path: Path) -> None:
    tensor, _ = stored(tmp_path / "file", "U8", (30, 10))
    placement = Placement("part", (Kept(0, (range(2), range(4, 5), range(20, 21))),))
    with watched(1000, 20) as asked:
        for block in StoredPart(tensor, placement).blocks():
            block.read()
    assert asked == [Request(START, 50), Request(START + 200, 10)]


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 3, 0)])
def test_of_an_empty_tensor_nothing_is_asked(tmp_path: Path, shape: tuple[int, ...]) -> None:
    part = StoredPart(StoredTensor(tmp_path / "not there", "whole", "F32", shape, 0), Placement("part"))
    assert part.nbytes == 0
    assert list(part.blocks()) == []


def test_what_the_system_gives_in_pieces_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, content = stored(tmp_path / "file", "F32", (6, 5))
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, at: preadv(descriptor, [buffers[0][:7]], at))
    (block,) = StoredPart(tensor, Placement("part")).blocks()
    assert np.array_equal(block.read(), content.reshape(-1).numpy())


def test_a_file_that_has_become_shorter_is_named(tmp_path: Path) -> None:
    tensor, _ = stored(tmp_path / "file", "F32", (6, 5))
    tensor.path.write_bytes(tensor.path.read_bytes()[: START + 50])
    (block,) = StoredPart(tensor, Placement("part")).blocks()
    with pytest.raises(CheckpointError, match=r"file: ends within 'whole'; it was changed while it was read"):
        block.read()


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    tensor, _ = stored(tmp_path / "file", "F32", (6, 5))
    tensor.path.unlink()
    (block,) = StoredPart(tensor, Placement("part")).blocks()
    with pytest.raises(
        CheckpointError, match=r"file: cannot read 'whole' \(No such file or directory\); check the disk"
    ):
        block.read()
