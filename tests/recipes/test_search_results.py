# SPDX-License-Identifier: Apache-2.0
"""What a search leaves behind: files that cut what was measured, a frontier, a report; and what may go on with it."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.saving import save
from model.config import ModelConfig
from model.errors import InputError
from model.slicing.spec import SliceSpec
from recipes import search
from recipes.cli import main
from recipes.search import (
    CALIBRATION,
    MEASURED_FILE,
    REPORT,
    RESULT_FILE,
    SEARCH,
    SETTINGS_FILE,
    SLICES,
    SearchRecipe,
    as_sweep,
    refuse_common,
    splits_of,
)
from recipes.sweep import build_engine, find_parent
from tests.tiny import tiny_model
from tests.trainer.parts import tiny_tokenizer, write_jsonl
from trainer.evaluation.splits import origin_of
from trainer.search.cost import Resource
from trainer.search.measured import Measured
from trainer.sweep.page.page import PAGE_FILE
from trainer.sweep.store import ROWS_FILE

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BUDGETS = 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of which no two are alike, in a place that shells would take apart."""
    words = [LETTERS[i : i + 1 + j] for i in range(8) for j in range(5)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "my rows, all.jsonl", [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
        for word in words
    ])  # fmt: skip


@pytest.fixture(scope="module")
def words(weights: Path, adapter: Path, rows: Path) -> list[str]:
    return [
        "search", f"checkpoint={weights}", f"adapter_path={adapter}",
        f"files=[{str(rows).replace(',', chr(92) + ',')}]",
        "space.block=3", f"num_budgets={BUDGETS}", "max_evaluations=8", "statistics.num_resamples=50", "batch_size=8",
        "official=false",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search in a directory whose name a shell would take apart."""
    directory = tmp_path_factory.mktemp("found") / "it's (mine) $HOME"
    assert main([*words, f"output={directory}", "tensorboard=true"]) == 0
    return directory


def result_in(directory: Path) -> dict[str, Any]:
    return json.loads((directory / RESULT_FILE).read_text(encoding="utf-8"))


def rows_in(directory: Path) -> dict[str, Any]:
    lines = (directory / ROWS_FILE).read_text(encoding="utf-8").splitlines()
    return {row["spec"]["name"]: row for row in map(json.loads, lines)}


def test_the_command_in_a_file_cuts_what_was_measured(finished: Path, words: list[str], rows: Path) -> None:
    pick = result_in(finished)["picks"][1]
    file = finished / SLICES / f"{pick['spec']['name']}.yaml"
    (command,) = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#   matslice")]
    program, *said = shlex.split(command.removeprefix("#"))
    assert program == "matslice"
    assert main(said) == 0
    (output,) = [word.partition("=")[2] for word in said if word.startswith("output=")]
    own = SearchRecipe(checkpoint=output, files=[str(rows)], output=finished, batch_size=8)
    parent = find_parent(as_sweep(own))
    for split, key in ((SEARCH, "loss"), (CALIBRATION, "calibration_loss")):
        task = splits_of(own, parent)[split]
        engine = build_engine(as_sweep(own), parent, [task], None)
        measure = Measured(finished.parent / "again.jsonl", "cut", task, engine, lambda *_: None)
        (loss,) = measure([SliceSpec.full(parent.config.text)])
        assert loss == pytest.approx(pick[key], abs=2e-6)


def test_what_is_reported_is_what_was_found_and_keeps_its_budget(finished: Path) -> None:
    found, reported = result_in(finished), rows_in(finished)
    assert len(found["picks"]) == BUDGETS
    for one in (*found["picks"], *found["frontier"]):
        row = reported[one["spec"]["name"]]
        assert row["spec"] == one["spec"]
        assert row["effective_parameters"] == one["cost"] <= one.get("budget", one["cost"])
        assert (finished / SLICES / f"{one['spec']['name']}.yaml").exists()
    assert "matslice search " in (finished / PAGE_FILE).read_text(encoding="utf-8")
    assert any((finished / "tensorboard").rglob("events*"))


def test_the_frontier_need_not_be_reported(words: list[str], tmp_path: Path) -> None:
    assert main([*words, f"output={tmp_path / 'out'}", "report_frontier=false", "budget=1e9"]) == 0
    found, reported = result_in(tmp_path / "out"), rows_in(tmp_path / "out")
    (pick,) = found["picks"]  # one number is a list of one
    assert pick["budget"] == 10**9
    frontier = {one["spec"]["name"] for one in found["frontier"]}
    assert len(frontier - reported.keys()) == len(frontier - {pick["spec"]["name"]}) > 0
    assert main([*words, f"output={tmp_path / 'out'}", "budget=[1e9]", "resume=true"]) == 0  # the same, and more told
    assert frontier <= rows_in(tmp_path / "out").keys()


def test_a_finished_search_needs_no_model(
    finished: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    monkeypatch.setattr(search, "build_engine", lambda *_: pytest.fail("the model was loaded"))
    assert main([*words, f"output={tmp_path / 'out'}", "resume=true"]) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("checkpoint={other}", "model: was"), ("adapter_path=null", "merge: was True, now False"),
        ("merge=false", "merge: was True, now False"), ("precision=bf16", "dtype: was 'float32', now 'bfloat16'"),
        ("method=official", "method: was 'surrogate', now 'official'"),
    ],
)  # fmt: skip
def test_what_was_found_of_one_model_is_not_reported_of_another(
    words: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, told: str
) -> None:
    output = tmp_path / "out"  # as one that was stopped before it reported
    output.mkdir()
    for name in (SETTINGS_FILE, RESULT_FILE, "measured.jsonl"):
        shutil.copy(finished / name, output)
    other = tmp_path / "other"
    save(tiny_model(seed=1), other, extras=tiny_tokenizer().write)
    key, _, value = more.format(other=other).partition("=")
    said = [word for word in words if word.partition("=")[0] != key]
    before = {path.name for path in output.iterdir()}
    assert main([*said, f"{key}={value}", f"output={output}", "resume=true"]) == 2
    shown = capsys.readouterr().err
    assert "this is another search; undo these changes, or search into another directory" in shown
    assert told in shown
    assert {path.name for path in output.iterdir()} - {".lock"} == before


def test_a_sweep_is_not_gone_on_with(
    words: list[str], weights: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    output = tmp_path / "swept"
    task = tmp_path / "task.yaml"
    task.write_text(json.dumps({"name": "said", "kind": "held_out", "files": [str(rows)]}), encoding="utf-8")
    swept = ["sweep", f"checkpoint={weights}", f"tasks={task}", "slices=full", "statistics.num_resamples=50"]
    assert main([*swept, f"output={output}"]) == 0
    before = sorted(output.rglob("*"))
    monkeypatch.setattr(search, "find_parent", lambda *_: pytest.fail("something was read"))
    assert main([*words, f"output={output}", "resume=true"]) == 2
    assert "holds a sweep, and no search that resume=true could go on with" in capsys.readouterr().err
    assert sorted(output.rglob("*")) == before


def test_texts_are_dealt_whole(words: list[str], weights: Path, tmp_path: Path, capsys: Any) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": letter * 60} for letter in LETTERS])
    own = SearchRecipe(checkpoint=str(weights), files=[str(texts)], output=tmp_path / "out", max_length_tokens=16)
    splits = splits_of(own, find_parent(as_sweep(own)))
    dealt = [{origin_of(row) for row in split.rows} for split in splits.values()]
    assert (
        sum(map(len, dealt)) == len(set.union(*dealt)) == len(LETTERS) < sum(len(one.rows) for one in splits.values())
    )
    # Another text of which a piece is searched: it begins alike.
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "a" * 60 + "b"}, {"text": "zyx"}])
    said = [word for word in words if not word.startswith("files=")]
    more = [f"files=[{texts}]", f"report_files=[{other}]", "shares=[0.5,0.5]", "max_length_tokens=16"]
    assert main([*said, *more, f"output={tmp_path / 'out'}"]) == 2
    assert "(piece 1 of" in (told := capsys.readouterr().err)
    assert "is the same row as" in told
    # No piece is searched, but others of the same text are.
    mine = splits[REPORT]
    row = dataclasses.replace(mine.rows[0], ids=mine.rows[0].ids.flip(0))
    others = {
        **splits,
        REPORT: dataclasses.replace(
            mine, rows=[dataclasses.replace(row, text_digest=splits[SEARCH].rows[0].text_digest)]
        ),
    }
    with pytest.raises(InputError, match=r"is of the same text as .*, which is searched"):
        refuse_common(others)


def test_what_no_budget_tells_apart_is_said(words: list[str], weights: Path, tmp_path: Path, capsys: Any) -> None:
    assert ModelConfig.read(weights).text.num_kv_shared_layers > 0
    assert (
        main([*words, f"output={tmp_path / 'out'}", f"cost.resource={Resource.kv_bytes}", "cost.context_tokens=9"]) == 2
    )
    assert "widths change no keys and values" in capsys.readouterr().err

    more = [f"cost.resource={Resource.kv_bytes}", "cost.context_tokens=9", "space.skip=[[0]]", "budget=1000000"]
    assert main([*words, f"output={tmp_path / 'out'}", *more, "method=paper"]) == 0
    lines = (tmp_path / "out" / MEASURED_FILE).read_text(encoding="utf-8").split("\n")
    measured = {tuple(json.loads(line)["ffn_widths"]) for line in lines if line}
    assert SliceSpec.full(ModelConfig.read(weights).text).ffn_widths in measured  # widths cost nothing
