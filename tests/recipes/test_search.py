# SPDX-License-Identifier: Apache-2.0
"""A search keeps its budgets, reports on rows it has not seen, goes on where it was stopped, and refuses early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.config import ModelConfig
from model.errors import ConfigError
from model.slicing.official import official
from model.slicing.spec import SliceSpec
from recipes import search
from recipes.cli import main
from recipes.search import MEASURED_FILE, RESULT_FILE, SLICES
from tests.trainer.parts import write_jsonl
from trainer.evaluation.engine import Engine
from trainer.search.measured import Measured
from trainer.sweep.row import read_rows
from trainer.sweep.store import ROWS_FILE

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Conversations of which no two are alike."""
    words = [LETTERS[i : i + 1 + j] for i in range(8) for j in range(5)]
    return write_jsonl(tmp_path / "rows.jsonl", [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
        for word in words
    ])  # fmt: skip


@pytest.fixture
def words(weights: Path, rows: Path) -> list[str]:
    return [
        "search", f"checkpoint={weights}", f"files=[{rows}]", "space.block=3", "num_budgets=3", "max_evaluations=6",
        "statistics.num_resamples=200", "batch_size=8",
    ]  # fmt: skip


def result_in(directory: Path) -> dict[str, Any]:
    return json.loads((directory / RESULT_FILE).read_text(encoding="utf-8"))


def items_in(directory: Path) -> set[str]:
    lines = (directory / "items" / "report.jsonl").read_text(encoding="utf-8").splitlines()
    return {item for line in lines for item in json.loads(line)["items"]}


def test_what_is_found_keeps_its_budget_and_can_be_cut(
    words: list[str], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: set[str] = set()
    measure = Measured.measure

    def noting(self: Measured, specs: Any) -> Any:
        searched.update(row.where for row in self.task.rows)
        return measure(self, specs)

    monkeypatch.setattr(Measured, "measure", noting)
    output = tmp_path / "found"
    assert main([*words, f"output={output}"]) == 0
    found = result_in(output)
    assert len(found["picks"]) == 3
    assert all(pick["cost"] <= pick["budget"] for pick in found["picks"])
    assert 1 <= found["evaluations"] <= 6
    reported = items_in(output)
    assert reported
    assert not reported & searched
    assert len(reported | searched) == 40
    specs = [row.spec for _, row in read_rows(output / ROWS_FILE)]
    names, shapes = {spec.name for spec in specs}, [spec.shape for spec in specs]
    files = sorted((output / SLICES).glob("*.yaml"))
    assert {file.stem for file in files} < names
    # The whole model and Google's sub-models stand beside them, each once, by the name under which it was found if any.
    config = ModelConfig.read(weights).text
    assert {SliceSpec.full(config).shape, *(one.spec.shape for one in official(config))} <= set(shapes)
    assert len(set(shapes)) == len(shapes)
    cut = ["slice", f"checkpoint={weights}", f"output={tmp_path / 'cut'}", "--config-dir", str(output)]
    assert main([*cut, f"slice={files[0].stem}"]) == 0
    kept = json.loads((tmp_path / "cut" / "config.json").read_text())
    spec = next(pick["spec"] for pick in found["picks"])
    assert kept["num_hidden_layers"] == len(spec["kept_layers"])


def test_a_search_goes_on_where_it_was_stopped(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main([*words, f"output={straight}"]) == 0
    score, calls = Engine.score, []

    def stopping(self: Engine, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:  # in the second round of measuring
            raise KeyboardInterrupt
        return score(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "score", stopping)
        assert main([*words, f"output={stopped}"]) == 130
    assert not (stopped / RESULT_FILE).exists()
    known = (stopped / MEASURED_FILE).read_text(encoding="utf-8")
    with (stopped / MEASURED_FILE).open("a") as file:
        file.write('{"of": "')  # what a killed process leaves
    assert main([*words, f"output={stopped}"]) == 2
    assert "already holds a search or a sweep; go on with a search by resume=true" in capsys.readouterr().err
    assert main([*words, f"output={stopped}", "resume=true"]) == 0
    assert (stopped / MEASURED_FILE).read_text(encoding="utf-8").startswith(known)
    assert result_in(stopped) == result_in(straight)
    lines = [json.loads(line) for line in (stopped / MEASURED_FILE).read_text().splitlines() if line.endswith("}")]
    assert len({json.dumps(line) for line in lines}) == len(lines)

    with monkeypatch.context() as patch:
        patch.setattr(Measured, "measure", lambda *_: pytest.fail("measured again"))
        assert main([*words, f"output={stopped}", "resume=true"]) == 0
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert main([*words, f"output={stopped}", "resume=true", "top_k=2"]) == 2
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before
    assert "top_k: was 3, now 2" in capsys.readouterr().err


def test_latency_is_measured_where_it_is_the_budget(words: list[str], tmp_path: Path) -> None:
    output = tmp_path / "timed"
    timed = ["cost.resource=latency_seconds", "latency.context_tokens=4", "latency.repeats=3"]
    assert main([*words, *timed, "budget=[1e6]", f"output={output}"]) == 0
    (pick,) = result_in(output)["picks"]
    assert 0 < pick["measured_cost"] <= pick["budget"] == 10**15
    assert main([*words, *timed, "budget=[1e6]", f"output={output}", "resume=true"]) == 0  # nothing is timed anew
    assert result_in(output)["picks"] == [pick]


def test_rows_to_report_on_may_be_named(words: list[str], rows: Path, tmp_path: Path, capsys: Any) -> None:
    more = ["shares=[0.5,0.5]", f"report_files=[{rows}]"]
    assert main([*words, *more, f"output={tmp_path / 'out'}"]) == 2
    assert "is the same row as" in (told := capsys.readouterr().err)
    assert "(40 such rows)" in told
    other = write_jsonl(tmp_path / "other.jsonl", [
        {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": word}]} for word in "xyz"
    ])  # fmt: skip
    assert main([*words, more[0], f"report_files=[{other}]", f"output={tmp_path / 'out'}"]) == 0
    assert len(items_in(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["budget=[10]"], "no sub-model of the space keeps a budget of 10 effective parameters: the cheapest keeps"),
        (["budget=[-1]"], "budget has -1"),
        (["budget=[nan]"], "budget has nan"),
        (["budget=[1e9,inf]"], "budget has inf"),
        (["seed=-1"], "seed is -1"),
        (["shares=[nan,0.5,0.5]"], "each must be above 0"),
        (["cost.resource=latency_seconds", "latency.context_tokens=100000"], "context is 100001 tokens"),
        (["budget=many"], "budget is 'many'; write a number, or several as in budget=[2.5e9,3e9]"),
        (["budget=[true]"], "budget is [True]; write a number"),
        (["method=sensitivity"], "max_evaluations is 6, but method=sensitivity has to measure 8 sub-models"),
        (["method=greedy"], "max_evaluations is 6, but method=greedy has to measure 8 sub-models"),
        (["max_evaluations=0"], "max_evaluations is 0; it must be at least 1"),
        (["shares=[0.5,0.5]"], "shares is [0.5, 0.5]; give those of all three splits"),
        (["shares=[0.5,0.6,0.1]"], "together they must be 1"),
        (["shares=[0.9999998,0.0000001,0.0000001]"], "none is drawn for the calibration split"),
        (["space.widths=[0]"], "space.widths has 0"),
        (["method=guess"], "guess"),
        (["files=[nowhere.jsonl]"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_weights_are_read(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(search, "build_engine", lambda *_: pytest.fail("the model was loaded"))
    given = [word for word in words if word.partition("=")[0] not in {one.partition("=")[0] for one in more}]
    assert main([*given, f"output={tmp_path / 'out'}", *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shares_of_rows_are_checked_where_they_are_used() -> None:
    with pytest.raises(ConfigError, match="shares is"):
        search.SearchRecipe(checkpoint="x", files=["y"], output=Path("z"), report_files=["y"])
