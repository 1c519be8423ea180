# SPDX-License-Identifier: Apache-2.0
"""A run takes any data, and says what became of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.parts import write_jsonl
from trainer.metrics import Record
from trainer.sinks import METRICS_FILE, read_records

WORDS = ("abc", "you", "no", "so", "yes", "ab", "ba", "say")
ROWS = [{"prompt": f"say {word}", "completion": word} for word in WORDS]


def begun(directory: Path) -> Record:
    """What a run said of itself when it began."""
    return next(read_records(directory / "run" / METRICS_FILE))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Questions and answers in Parquet, the columns named otherwise."""
    path = tmp_path / "qa.parquet"
    pq.write_table(pa.Table.from_pylist([{"q": row["prompt"], "a": row["completion"]} for row in ROWS]), path)
    return path


def test_a_mixture_is_trained_on_and_measured_on_what_is_held_out(
    train: Callable[..., int], tmp_path: Path, table: Path
) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", [{"instruction": f"spell {word}", "output": word} for word in WORDS])
    columns = "columns: {prompt: q, completion: a}"
    sources = f"{{qa: {{path: {table}, weight: 2, {columns}}}, task: {{path: {lines}, weight: 0.5}}}}"
    assert train("data.train=[]", f"+data.sources={sources}", "data.held_out=4", "data.validation=[]") == 0
    record = begun(tmp_path)
    assert record["validation_rows"] == 4
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert '"weight": 2.0' in json.dumps(run)
    assert record["train_rows"] in range(2 * 4 + 4 - 2, 2 * 8 + 2 + 1)
    assert record["train_rows_bad"] == 0


def test_bad_rows_refuse_a_run_unless_they_are_to_be_skipped(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"prompt": "x"}, "{"])
    words = [f"data.train=[{path}]"]
    assert train(*words) != 0
    assert "data: 2 of 10 rows cannot be used; mend or remove them, or leave" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train(*words, "data.on_bad_row=skip") == 0
    assert (begun(tmp_path)["train_rows"], begun(tmp_path)["train_rows_bad"]) == (8, 2)
    told = capsys.readouterr().err
    assert f"data: leaves out 2 rows that cannot be used (data.on_bad_row)\n{path}:9: completion: found none" in told
    assert "8 rows (0 too long, 2 bad)" in told


def test_the_same_rows_train_the_same_in_whatever_they_are_written(
    train: Callable[..., int], tmp_path: Path, table: Path
) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", ROWS)
    losses: list[list[float]] = []
    columns = ["+data.columns.prompt=q", "+data.columns.completion=a"]
    for index, words in enumerate(([f"data.train=[{lines}]"], [f"data.train=[{table}]", *columns])):
        output = tmp_path / f"run{index}"
        assert train(*words, f"trainer.output={output}", "data.validation=[]") == 0
        records = read_records(output / METRICS_FILE)
        losses.append([record["loss"] for record in records if record["kind"] == "train"])
    assert losses[0] == losses[1] != []


@pytest.mark.parametrize(("words", "message"), [
    (["data.format=alpaca"], "instruction: found none (the row has 'prompt', 'completion'); expected a string"),
    (["data.held_out=0.2", "data.validation=[x]"], "data.held_out and data.validation are both given"),
    (["data.held_out=8"], "data.held_out is 8, but there are 8 rows"),
    (["data.supervise.roles=[]"], "data.supervise.roles is empty"),
    (["data.supervise.roles=[system]"], "found no token that is learnt; expected at least one"),
    (["+data.columns.quesion=x"], "data.columns: 'quesion' is no field of rows"),
    (["data.on_bad_row=drop"], "data.on_bad_row"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_made(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert train(f"data.train=[{path}]", "data.validation=[]", *words) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_pairs_train_their_chosen_answers_if_so_wished(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs: list[Any] = [{"prompt": f"say {word}", "chosen": word, "rejected": "x"} for word in WORDS]
    path = write_jsonl(tmp_path / "a.jsonl", pairs)
    assert train(f"data.train=[{path}]") != 0
    assert "there is no preference objective yet to train on them; data.preference=chosen" in capsys.readouterr().err
    assert train(f"data.train=[{path}]", "data.preference=chosen") == 0
    assert begun(tmp_path)["train_rows"] == 8
