# SPDX-License-Identifier: Apache-2.0
"""The safetensors format, read and written by byte positions: the same as by the safetensors library."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint.format import ALIGNMENT_BYTES, ITEM_BYTES, LENGTH, METADATA, header, places, read_header
from model.errors import CheckpointError
from tests.laws.drawn import scratch

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "vector": (5,),
    "matrix": (3, 4),
    "four": (2, 1, 3, 2),
    "none": (0,),
    "no": (2, 0),
}
A, B = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]}


def filled(dtype: str, shape: Sequence[int]) -> Tensor:
    """A tensor of bytes 0 and 1 in turn, which every dtype allows."""
    return (torch.arange(math.prod(shape) * ITEM_BYTES[dtype]) % 2).byte().view(TORCH[dtype]).view(tuple(shape))


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def file_of(path: Path, entries: Any, data: bytes = bytes(11)) -> Path:
    """A file with this header, whatever it says."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(LENGTH.pack(len(text)) + text + data)
    return path


def written_by_us(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    spelled = {dtype: name for name, dtype in TORCH.items()}
    listed = [(name, spelled[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    path.write_bytes(header(listed) + b"".join(map(as_bytes, tensors.values())))
    return path


def assert_refused(path: Path, told: str = "") -> None:
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: cut short or not a safetensors file.*{told}"):
        read_header(path)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_what_safetensors_writes_is_found_where_it_lies(tmp_path: Path, dtype: str) -> None:
    tensors = {name: filled(dtype, shape) for name, shape in SHAPES.items()}
    path = tmp_path / "theirs.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "of": "no matter"})
    found, content = read_header(path), path.read_bytes()
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert (tensor.path, tensor.name, tensor.dtype, tensor.shape) == (path, name, dtype, SHAPES[name])
        assert tensor.nbytes == tensors[name].nbytes
        assert content[tensor.start : tensor.start + tensor.nbytes] == as_bytes(tensors[name])


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_what_we_write_is_read_by_safetensors(tmp_path: Path, dtype: str) -> None:
    tensors = {name: filled(dtype, shape) for name, shape in SHAPES.items()}
    path = written_by_us(tmp_path / "ours.safetensors", tensors)
    for name, tensor in load_file(path).items():
        assert tensor.dtype is TORCH[dtype]
        assert tensor.shape == SHAPES[name]
        assert as_bytes(tensor) == as_bytes(tensors[name])
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == tensors.keys()
        assert file.metadata() == METADATA


@given(
    st.dictionaries(
        st.text(max_size=9), st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 3), max_size=4))
    )
)
def test_headers_of_ours_and_theirs_say_the_same(drawn: dict[str, tuple[str, list[int]]]) -> None:
    tensors = {name: filled(*what) for name, what in drawn.items() if name != "__metadata__"}
    with scratch() as directory:
        ours = read_header(written_by_us(directory / "ours", tensors))
        save_file(tensors, directory / "theirs")
        theirs, content = read_header(directory / "theirs"), (directory / "theirs").read_bytes()
        assert list(ours) == list(tensors)  # in the order they lie in the file
        assert {name: as_bytes(tensor) for name, tensor in load_file(directory / "ours").items()} == {
            name: content[tensor.start : tensor.start + tensor.nbytes] for name, tensor in theirs.items()
        }


def test_tensors_begin_at_an_aligned_byte() -> None:
    for length in range(1, 20):
        beginning = header([("n" * length, "F32", (2,))])
        assert len(beginning) % ALIGNMENT_BYTES == 0
        assert LENGTH.unpack(beginning[: LENGTH.size])[0] == len(beginning) - LENGTH.size


def test_places_lie_one_behind_the_other() -> None:
    listed = [("a", "BF16", (3, 5)), ("b", "F32", ()), ("c", "U8", (0,)), ("d", "I64", (2,))]
    assert [span for span, _ in places(listed)] == [(0, 30), (30, 34), (34, 34), (34, 50)]


@pytest.mark.parametrize("names", [("full", "empty"), ("empty", "full")])
def test_an_empty_tensor_may_begin_where_its_neighbour_does(tmp_path: Path, names: tuple[str, str]) -> None:
    entries = {"full": A, "empty": {"dtype": "F32", "shape": [0, 9], "data_offsets": [0, 0]}}
    path = file_of(tmp_path / "file", {name: entries[name] for name in names}, bytes(8))
    assert load_file(path).keys() == read_header(path).keys() == entries.keys()


def test_a_file_may_hold_no_tensor(tmp_path: Path) -> None:
    assert read_header(file_of(tmp_path / "file", {}, b"")) == {}
    assert read_header(file_of(tmp_path / "file", {"__metadata__": {"a": "b"}}, b"")) == {}


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = file_of(tmp_path / "whole", {"a": A, "b": B}).read_bytes()
    read_header(tmp_path / "whole")
    path = tmp_path / "short"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(path)


def test_a_file_with_something_behind_it_is_refused(tmp_path: Path) -> None:
    assert_refused(file_of(tmp_path / "file", {"a": A, "b": B}, bytes(12)), r"tensors end at byte \d+, the file at \d+")


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"data_offsets": [9, 12]}, "'b' begins at byte"),  # a gap
        ({"data_offsets": [7, 10]}, "'b' begins at byte"),  # an overlap
        ({"data_offsets": [0, 3]}, "begins at byte"),  # within the first
        ({"data_offsets": [8, 12]}, "'b' has 4 bytes where its shape takes 3"),
        ({"data_offsets": [11, 8]}, "'b' has -3 bytes"),
        ({"data_offsets": [-3, 0]}, r"'b' has the shape \[3\] at \[-3, 0\]"),
        ({"data_offsets": [8.0, 11.0]}, "'b' has the shape"),
        ({"data_offsets": [8]}, ""),
        ({"data_offsets": None}, ""),
        ({"shape": [4]}, "'b' has 3 bytes where its shape takes 4"),
        ({"shape": [-3]}, "'b' has the shape"),
        ({"shape": ["3"]}, "'b' has the shape"),
        ({"shape": [2**62, 2**62]}, "where its shape takes"),
        ({"shape": 3}, ""),
        ({"dtype": "U4"}, "'b' has the dtype U4, which is unknown here"),
        ({"dtype": "F32"}, "'b' has 3 bytes where its shape takes 12"),
        ({"dtype": ["U8"]}, ""),
        ({"dtype": None}, "'b' has the dtype None"),
    ],
)
def test_a_tensor_that_is_not_where_its_entry_says_is_refused(
    tmp_path: Path, second: Mapping[str, Any], told: str
) -> None:
    assert_refused(file_of(tmp_path / "file", {"a": A, "b": {**B, **second}}), told)


@pytest.mark.parametrize("lacking", ["dtype", "shape", "data_offsets"])
def test_an_entry_without_one_of_its_fields_is_refused(tmp_path: Path, lacking: str) -> None:
    entry = {name: value for name, value in B.items() if name != lacking}
    assert_refused(file_of(tmp_path / "file", {"a": A, "b": entry}), lacking)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"3", b"null", b'"text"', b"", b"{", b"\xff\xfe", b'{"a": 3}', b'{"a": []}', b"PK\x03\x04", b"[" * 100_000],
)
def test_a_header_that_is_no_object_of_entries_is_refused(tmp_path: Path, content: bytes) -> None:
    assert_refused(file_of(tmp_path / "file", content))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 12])
def test_a_header_longer_than_its_file_or_the_format_allows_is_not_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(LENGTH.pack(length) + b"{}")
    assert_refused(path, f"a header of {length} bytes in a file of 10")


def test_a_file_that_is_not_there_or_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: cannot be read \(.*check the file"):
            read_header(path)
