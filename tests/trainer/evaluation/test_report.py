# SPDX-License-Identifier: Apache-2.0
"""The report says the same to people and to programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from trainer.evaluation.held_out import Score
from trainer.evaluation.report import SizeRow, TaskScore, table, write_report

BEFORE = Score(loss_sum=8.0, supervised_tokens=4, exact=0, examples=3)
AFTER = Score(loss_sum=2.0, supervised_tokens=4, exact=2, examples=3)
TASKS = {"topic": TaskScore(BEFORE, AFTER, 0.25), "say": TaskScore(AFTER, AFTER, 0.1)}
ROWS = [
    SizeRow(name=name, parameters=2 * size, effective_parameters=size, bytes=4 * size, tasks=TASKS)
    for name, size in (("full", 3_980_491_248), ("e2b", 1_905_495_648))
]


def test_the_rows_are_written_unrounded(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [record["size"] for record in records] == ["full", "e2b"]
    assert records[1]["effective_parameters"] == 1_905_495_648
    assert records[1]["tasks"]["topic"]["accuracy_after"] == 2 / 3
    assert records[1]["tasks"]["say"]["majority"] == 0.1


def test_the_markdown_table_has_a_row_per_size_and_a_column_per_task(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert lines[0] == "| size | parameters | effective | bytes | topic (of 3) | say (of 3) |"
    assert lines[3] == "| e2b | 3,810,991,296 | 1,905,495,648 | 7,621,982,592 | 0.000 → 0.667 | 0.667 → 0.667 |"


def test_the_majority_answer_is_the_last_row(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path)
    assert (tmp_path / "report.md").read_text().splitlines()[-1] == "| majority answer |  |  |  | 0.250 | 0.100 |"


def test_an_accuracy_is_told_with_the_luck_there_may_be_in_it() -> None:
    assert TASKS["topic"].standard_error == pytest.approx((2 / 3 * 1 / 3 / 3) ** 0.5)


def test_the_terminal_shows_every_size_and_task() -> None:
    text = io.StringIO()
    Console(file=text, width=150).print(table(ROWS))
    assert all(expected in text.getvalue() for expected in ("full", "e2b", "3,980,491,248", "topic", "0.667", "0.250"))


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
