# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a file of data, and the exact words in which it is told, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ConfigError, InputError
from tests.trainer.data.malformed_files import DIRECTORIES, FILES
from tests.trainer.data.malformed_rows import GOOD, GOOD_ROWS, PAIR, ROWS, TALK, arrow_stream, lines, parquet, turns
from tests.trainer.parts import picture_bytes, tiny_media_processor
from trainer.data.config import DataConfig, LongRows, OnBadRow, OnPreference, RowFormat, SourceConfig
from trainer.data.dataset import read_rows

PROCESSOR = tiny_media_processor()


def told(path: Path, name: str, content: bytes | Callable[[Path], bytes], **values: Any) -> str:
    """How a file is refused: the whole message, without the directory it is in."""
    (path / name).write_bytes(content(path) if callable(content) else content)
    return refusal(path, train=[str(path / name)], **values)


def refusal(path: Path, **values: Any) -> str:
    """How data are refused: the whole message, without the directory they are in."""
    with pytest.raises((InputError, ConfigError)) as raised:
        read_rows(DataConfig(max_length_tokens=60, **values), PROCESSOR, seed=0)
    return str(raised.value).replace(f"{path}/", "").replace(str(path), "HERE")


@pytest.mark.parametrize(("form", "row", "what"), ROWS, ids=[f"{form}-{what[:40]}" for form, _, what in ROWS])
def test_a_bad_row_is_told_with_its_line_and_what_was_expected(tmp_path: Path, form: str, row: Any, what: str) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    assert told(tmp_path, "rows.jsonl", lines(GOOD_ROWS[form], row), preference=OnPreference.chosen) == (
        "data: 1 of 2 rows cannot be used; mend or remove them, or leave them out with data.on_bad_row=skip\n"
        f"rows.jsonl:2: {what}"
    )


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[f"{name}-{said[6:50]}" for name, _, said in FILES])
def test_a_file_that_cannot_be_read_is_told_as_a_whole(tmp_path: Path, name: str, content: Any, message: str) -> None:
    assert told(tmp_path, name, content) == message


@pytest.mark.parametrize(("name", "content", "begin"), [
    ("a.arrow", lambda path: arrow_stream(path)[:900], "data: 'a.arrow': cannot be read from row 1 on ("),
    ("a.arrow", b"hello world " * 20, "data: 'a.arrow': cannot be read from row 1 on ("),
    ("a.parquet", lambda path: parquet(path)[:4] + b"\xff" * 200 + parquet(path)[204:],
     "data: 'a.parquet': cannot be read from row 1 on ("),
    ("a.parquet", b"PAR1\0\0\0\0PAR1", "data: 'a.parquet': cannot be read from row 1 on ("),
])  # fmt: skip
def test_of_damage_within_a_table_its_library_says_what_it_is(
    tmp_path: Path, name: str, content: Any, begin: str
) -> None:
    said = told(tmp_path, name, content)
    assert said.startswith(begin)
    assert said.endswith("); copy or download it again")


@pytest.mark.parametrize(("line", "where", "what"), [
    (b"a\n", 3, "row: found 1 fields; expected 2 (prompt, completion)"),
    (b"a,b,c\n", 3, "row: found 3 fields; expected 2 (prompt, completion)"),
    (b"a,\n", 3, "completion: found no text; expected some"),
    (b'"a\nb","b\n', 3, "row: found a quote (\") that is closed nowhere; expected 2 fields"),
    (b'a,"b"c\n', 3, "row: found no fields (',' expected after '\"'); expected 2 fields"),
    (b"a,\xff\n", 3, "completion: found byte 0xff; expected UTF-8 text"),
    (b"a,b\0\n", 3, "completion: found a NUL byte at character 2; expected text"),
    (b'"x\ny",b\na\n', 5, "row: found 1 fields; expected 2 (prompt, completion)"),
])  # fmt: skip
def test_a_bad_row_of_a_table_of_text_is_told_with_the_line_it_begins_on(
    tmp_path: Path, line: bytes, where: int, what: str
) -> None:
    said = told(tmp_path, "a.csv", b"prompt,completion\nsay a,a\n" + line)
    assert said.splitlines()[1:] == [f"a.csv:{where}: {what}"]


def test_rows_without_lines_are_told_by_their_number(tmp_path: Path) -> None:
    said = told(tmp_path, "a.json", json.dumps([GOOD, {"messages": 1}]).encode())
    assert said.splitlines()[1] == "a.json:row 2: messages: found a number ('1'); expected a list of turns"
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "b.parquet")
    said = refusal(tmp_path, train=[str(tmp_path / "b.parquet")])
    assert said.splitlines()[1] == "b.parquet:row 2: text: found null; expected a string"
    datasets.Dataset.from_dict({"text": ["a", " "]}).save_to_disk(tmp_path / "c")
    said = refusal(tmp_path, train=[str(tmp_path / "c")])
    assert said.splitlines()[1] == "c:2: text: found no text; expected some"
    said = refusal(tmp_path, train=[str(tmp_path / "b.parquet")], columns={"prompt": "text", "completion": "answer"})
    assert "rows of no known format: none (the row has 'prompt')" in said


def test_a_field_is_told_under_the_name_of_its_column(tmp_path: Path) -> None:
    (tmp_path / "qa.csv").write_bytes(b"question,answer\na,b\na,\n")
    said = refusal(
        tmp_path, train=[], sources={"qa": SourceConfig(
            path=str(tmp_path / "qa.csv"), columns={"prompt": "question", "completion": "answer"}
        )},
    )  # fmt: skip
    assert said.splitlines()[1] == "qa.csv:3: answer: found no text; expected some"


@pytest.mark.parametrize(("name", "files", "message"), DIRECTORIES, ids=[name for name, _, _ in DIRECTORIES])
def test_a_directory_or_name_that_leads_to_no_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, bytes], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    assert refusal(tmp_path, train=[name]) == message


def test_twenty_bad_rows_are_shown_of_all_sources_and_all_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD, *[b"{"] * 15))
    (tmp_path / "b.json").write_text(json.dumps([TALK, *[{"conversations": []}] * 15]))
    said = refusal(tmp_path, train=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")]).splitlines()
    assert said[0].startswith("data: 30 of 32 rows cannot be used; ")
    assert [said[1].split(" ")[0], said[16].split(":")[0], said[-1]] == ["a.jsonl:2:", "b.json", "… and 10 more"]


def test_pairs_are_refused_as_long_as_nothing_learns_from_them(tmp_path: Path) -> None:
    assert told(tmp_path, "pairs.jsonl", lines(PAIR)) == (
        "data: 'pairs.jsonl' holds preference pairs, and there is no preference objective yet to train on them;"
        " data.preference=chosen learns the chosen answers alone, as supervised fine-tuning"
    )


@pytest.mark.parametrize(("values", "message"), [
    ({"train": []}, ("data.train is empty, and so is data.sources; name at least one file, directory or data set of the"
     " hub")),
    ({"train": ["a"], "held_out": 0.1, "validation": ["b"]}, ("data.held_out and data.validation are both given, and"
     " two sets would be measured as one; leave one out")),
    ({"train": ["a"], "held_out": 1.5},
     "data.held_out is 1.5; it must be a share between 0 and 1, or a whole number of rows"),
    ({"train": ["a"], "held_out": 0.0},
     "data.held_out is 0.0; it must be a share between 0 and 1, or a whole number of rows"),
    ({"train": ["a"], "columns": {"promt": "q"}, "format": RowFormat.prompt_completion}, ("data.columns: 'promt' is no"
     " field of rows of format=prompt_completion; they have prompt, completion, images, audio")),
    ({"train": ["a"], "columns": {"prompt": "q", "completion": "q"}},
     "data.columns: 'q' is given for two fields; each needs a column of its own"),
])  # fmt: skip
def test_a_config_that_cannot_be_meant_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert refusal(tmp_path, **values) == message


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_above_0_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"the weight of 'a' is .*; it must be a number above 0"):
        SourceConfig(path="a", weight=weight)


def test_nothing_left_is_refused_also_where_bad_rows_are_skipped(tmp_path: Path) -> None:
    said = told(tmp_path, "a.jsonl", lines({"messages": []}, {"messages": 1}), on_bad_row=OnBadRow.skip)
    assert said.startswith("data: 2 of 2 rows cannot be used; and none is left; mend them\na.jsonl:1: messages: found")
    assert "expected at most 60" in told(
        tmp_path,
        "b.jsonl",
        lines(GOOD, turns(content="long " * 20)),
        on_bad_row=OnBadRow.skip,
        long_rows=LongRows.refuse,
    )
