# SPDX-License-Identifier: Apache-2.0
"""Reading that begins in the middle gives what reading from the beginning gives from there on, places included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config

from model.errors import InputError
from trainer.data.faults import Fault
from trainer.data.finding import find, glance_at
from trainer.data.reading import Piece, Row
from trainer.data.tables import streamed_pieces

COUNT = 200
ROWS = [{"prompt": f"say {number}", "completion": "word " * (number % 3 + 1)} for number in range(COUNT)]


def lines(path: Path) -> Path:
    """Blank lines, which are no rows, and damaged ones, which are."""
    written = [json.dumps(row) + ("\n\n" if number % 7 == 0 else "\n") for number, row in enumerate(ROWS)]
    written[20] = "{\n"
    path.write_text("".join(written), encoding="utf-8")
    return path


def table(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=30)
    return path


def arrow(path: Path, *, stream: bool) -> Path:
    whole = pa.Table.from_pylist(ROWS)
    opened: Callable[..., Any] = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opened(file, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=30)
    return path


def json_list(path: Path) -> Path:
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def csv(path: Path) -> Path:
    body = "".join(f'"say\n{number}",b{",c" if number == 50 else ""}\n' for number in range(COUNT))
    path.write_text(f"prompt,completion\n{body}", encoding="utf-8")
    return path


def saved(path: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


MADE: dict[str, Callable[[Path], Path]] = {
    "a.jsonl": lines, "a.json": json_list, "a.csv": csv, "a.parquet": table,
    "file.arrow": lambda path: arrow(path, stream=False), "stream.arrow": lambda path: arrow(path, stream=True),
    "saved": saved,
}  # fmt: skip


def assert_begins_anywhere(piece: Piece) -> None:
    whole: list[Row | Fault] = list(piece.read(0))
    assert len(whole) == COUNT
    for start in (1, 29, 30, 64, 150, COUNT - 1, COUNT, COUNT + 5):
        assert list(piece.read(start)) == whole[start:], start


@pytest.mark.parametrize("name", MADE)
def test_a_file_is_read_from_any_of_its_rows(tmp_path: Path, name: str) -> None:
    (piece,) = find(MADE[name](tmp_path / name))
    assert_begins_anywhere(piece)


def test_a_data_set_is_streamed_by_its_files(tmp_path: Path) -> None:
    files = [tmp_path / f"part-{number}.jsonl" for number in range(3)]
    for number, file in enumerate(files):
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[number::3]), encoding="utf-8")

    def builder() -> datasets.DatasetBuilder:
        cache = str(tmp_path / "cache")
        return datasets.load_dataset_builder("json", data_files=list(map(str, files)), cache_dir=cache)

    pieces = streamed_pieces(builder(), "train", "org/name[train]", tmp_path)
    assert [piece.name for piece in pieces] == [f"org/name[train][{number}]" for number in range(3)]
    for number, piece in enumerate(pieces):
        whole = list(piece.read(0))
        assert [row.value for row in whole if isinstance(row, Row)] == ROWS[number::3]
        assert whole[10].where == f"org/name[train][{number}]:11"
        for start in (1, 40, len(whole), len(whole) + 1):
            assert list(piece.read(start)) == whole[start:]
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # nothing was made of it on disk
    assert streamed_pieces(builder(), "train", "", tmp_path)[0].glance() == pieces[0].glance()
    with files[1].open("a", encoding="utf-8") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert streamed_pieces(builder(), "train", "", tmp_path)[0].glance() != pieces[0].glance()


def test_a_stream_of_a_hub_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'nobody/nothing' is no file .* and the hub cannot be reached"):
        find("nobody/nothing", streaming=True)


def test_damage_is_told_by_the_row_that_it_follows(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"a\.parquet': cannot be read from row \d+ on"):
        list(find(path)[0].read(31))


def test_a_glance_sees_other_sizes_and_other_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    seen = set()
    for content in (b"abc", b"abcd", b"xbc", b"abx", b""):
        path.write_bytes(content)
        seen.add(glance_at([path]))
    assert len(seen) == 5
