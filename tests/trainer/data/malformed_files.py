# SPDX-License-Identifier: Apache-2.0
"""Files and directories that cannot be read at all, and the exact words in which each is refused."""

from __future__ import annotations

from typing import Any

from tests.trainer.data.malformed_rows import ENDINGS, GOOD, arrow_file, arrow_stream, lines, parquet

FILES: list[tuple[str, Any, str]] = [  # name of the file, what is in it, how it is refused
    ("a.jsonl", b"", "data: 'a.jsonl' has no rows"),
    ("a.jsonl", b"\n \n", "data: 'a.jsonl' has no rows"),
    (
        "a.jsonl",
        '{"text": "a"}\n'.encode("utf-16"),
        "data: 'a.jsonl': found the first bytes of UTF-16; expected UTF-8; save it anew as that",
    ),
    (
        "a.jsonl",
        lines({"question": "a", "answer": "b"}),
        (
            "data: 'a.jsonl': rows of no known format: none (the row has"
            " 'question', 'answer'); expected the fields of one (messages; conversations; chosen; instruction and"
            " output; prompt and completion; text), or data.columns to say what they are called here"
        ),
    ),
    ("a.yaml", b"- a", f"data: 'a.yaml' ends in '.yaml'; expected {ENDINGS}"),
    ("rows", b"a", f"data: 'rows' has no ending; expected {ENDINGS}"),
    ("a.json", b"", "data: 'a.json': found no JSON (Expecting value at line 1, column 1); expected a list of rows"),
    ("a.json", b"[]", "data: 'a.json' has no rows"),
    (
        "a.json",
        b'{"data": []}',
        (
            "data: 'a.json': found an object; expected a list of rows; a file of one object per line"
            " is JSON Lines, and called .jsonl"
        ),
    ),
    (
        "a.json",
        b'{"text": "a"}\n{"text": "b"}',
        (
            "data: 'a.json': found no JSON (Extra data at line 2, column 1);"
            " expected a list of rows; a file of one object per line is JSON Lines, and called .jsonl"
        ),
    ),
    (
        "a.json",
        b'[{"text": "a"}]]',
        (
            "data: 'a.json': found no JSON (Extra data at line 1, column 16); expected a list of"
            " rows; a file of one object per line is JSON Lines, and called .jsonl"
        ),
    ),
    ("a.json", b'[\n{"text": "\xff"}]', "data: a.json:2: found byte 0xff; expected UTF-8 text"),
    ("a.csv", b"", "data: 'a.csv' has no rows"),
    ("a.csv", b"text\n", "data: 'a.csv' has no rows"),
    ("a.csv", b"text,text\na,b\n", "data: a.csv:1: found 'text' twice among the columns; expected a name for each"),
    ("a.csv", b"te\xffxt\na\n", "data: a.csv:1: found byte 0xff in the names of columns; expected UTF-8 text"),
    (
        "a.csv",
        b"question,answer\na,b\n",
        (
            "data: 'a.csv': rows of no known format: none (the row has 'question',"
            " 'answer'); expected the fields of one (messages; conversations; chosen; instruction and output; prompt"
            " and completion; text), or data.columns to say what they are called here"
        ),
    ),
    ("a.txt", b"\n", "data: 'a.txt' has no rows"),
    ("a.txt", b"one\ntw\xff", "data: a.txt:2: found byte 0xff; expected UTF-8 text"),
    (
        "a.parquet",
        b"",
        (
            "data: 'a.parquet': found no Parquet (its first bytes are not PAR1); give it the ending of what it"
            " is, or copy or download it again"
        ),
    ),
    (
        "a.parquet",
        lines(GOOD),
        (
            "data: 'a.parquet': found no Parquet (its first bytes are not PAR1); give it the ending of"
            " what it is, or copy or download it again"
        ),
    ),
    (
        "a.parquet",
        lambda path: parquet(path)[:-20],
        "data: 'a.parquet': is cut short (its last bytes are not PAR1); copy or download it again",
    ),
    (
        "a.arrow",
        lambda path: arrow_file(path)[:-9],
        "data: 'a.arrow': is cut short (its last bytes are not ARROW1); copy or download it again",
    ),
    (
        "a.arrow",
        lambda path: arrow_stream(path, end=-8),
        "data: 'a.arrow': cannot be read from row 501 on (its end is missing); copy or download it again",
    ),
]


DIRECTORIES: list[tuple[str, dict[str, Any], str]] = [
    ("empty", {}, "data: directory 'empty' has no data; expected files that end in " + ENDINGS),
    (
        "splits@none",
        {"splits/train.jsonl": lines(GOOD), "splits/test.jsonl": lines(GOOD)},
        "data: 'splits': has no split 'none'; name one of train, test, as splits@SPLIT",
    ),
    (
        "tests",
        {"tests/test.jsonl": lines(GOOD), "tests/validation.jsonl": lines(GOOD)},
        "data: 'tests': has no split 'train'; name one of validation, test, as tests@SPLIT",
    ),
    (
        "saved",
        {"saved/state.json": b"{", "saved/dataset_info.json": b"{}"},
        (
            "data: 'saved': no data set can be loaded"
            " from it (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"
        ),
    ),
    (
        "a.jsonl@test",
        {"a.jsonl": lines(GOOD)},
        ("data: 'a.jsonl@test': a file has no configs and splits; name 'a.jsonl' alone"),
    ),
    ("nowhere.jsonl", {}, "data: no file 'nowhere.jsonl' (relative names start at HERE)"),
    ("sub/dir/nowhere", {}, "data: no file 'sub/dir/nowhere' (relative names start at HERE)"),
    ("", {}, "data: found an empty name; name a file, a directory or a data set of the hub"),
    (
        "some/name:config@test",
        {},
        (
            "data: 'some/name:config' is no file or directory here (relative names start at HERE),"
            " and the hub cannot be reached; check the name, or download the data set where there is a network"
            " (datasets.load_dataset(…).save_to_disk(DIRECTORY)) and name the directory"
        ),
    ),
]
