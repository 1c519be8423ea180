# SPDX-License-Identifier: Apache-2.0
"""A sweep finds of every sub-model what a sweep of it alone finds, goes on where it ended, and refuses early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.gemma3n import Gemma3n
from recipes import sweep
from recipes.cli import main
from trainer.sweep.page.page import PAGE_FILE
from trainer.sweep.store import ROWS_FILE

TASKS = {
    "words": {"kind": "held_out"},
    "choice": {"kind": "multiple_choice", "metrics": ["accuracy_normalised", "accuracy"]},
    "say": {"kind": "generation", "generation": {"max_new_tokens": 4}},
}
QUESTIONS = [
    {"question": f"say {right}", "choices": ["abc", "hij", "e"], "answer": place}
    for place, right in enumerate(("abc", "hij", "e"))
]
VARYING = ("seconds", "seconds_together", "peak_memory_bytes")


@pytest.fixture
def words(weights: Path, chat: Path, tmp_path: Path) -> list[str]:
    """What all sweeps here are told; names of sub-models stand for shapes that fit nine layers."""
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    files = []
    for name, task in TASKS.items():
        rows = tmp_path / "questions.jsonl" if name == "choice" else chat
        limits = {} if name == "choice" else {"max_items": 6}
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({"name": name, "files": [str(rows)], "batch_size": 3, **limits, **task}))
        files.append(str(path))
    return ["sweep", f"checkpoint={weights}", f"tasks=[{','.join(files)}]", "statistics.num_resamples=200"]


def rows_in(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / ROWS_FILE).read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in VARYING} for line in lines]


@pytest.mark.slow
def test_many_sub_models_are_found_as_each_alone(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads, load = [], sweep.build_adapted

    def counting(*args: Any, **options: Any) -> Any:
        loads.append(1)
        return load(*args, **options)

    monkeypatch.setattr(sweep, "build_adapted", counting)
    together = tmp_path / "together"
    assert main([*words, f"output={together}"]) == 0
    assert len(loads) == 1
    found = rows_in(together)
    assert len(found) == 16 * 3
    for name in ("report.html", "frontier.png", "rows.csv", "slices.csv"):
        assert (together / name).stat().st_size > 0
    assert str(together / PAGE_FILE) in capsys.readouterr().out

    table = (together / "slices.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 17
    for line in (2, 5, 16):  # one row of the table each
        alone, one = tmp_path / f"alone_{line}", tmp_path / f"one_{line}.csv"
        one.write_text("\n".join([table[0], table[line]]) + "\n", encoding="utf-8")
        assert main([*words, f"slices={one}", f"output={alone}"]) == 0
        name = next(row["spec"]["name"] for row in rows_in(alone) if row["spec"]["name"] != "full")
        expected = [row for row in found if row["spec"]["name"] == name]
        assert [row for row in rows_in(alone) if row["spec"]["name"] == name] == expected


@pytest.mark.slow
def test_a_sweep_goes_on_and_takes_more_sub_models(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    assert main([*words, f"output={whole}"]) == 0
    assert main([*words, f"output={whole}"]) == 2
    assert "already holds a sweep; go on with it by resume=true" in capsys.readouterr().err

    before = (whole / ROWS_FILE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Gemma3n, "hidden_of_each", lambda *_args, **_options: pytest.fail("measured again"))
        assert main([*words, f"output={whole}", "resume=true"]) == 0
    assert (whole / ROWS_FILE).read_bytes() == before

    (tmp_path / "mine.yaml").write_text("name: mine\nffn_widths: [16]\n", encoding="utf-8")
    more = f"slices=[official,{tmp_path / 'mine.yaml'}]"
    assert main([*words, more, f"output={whole}", "resume=true"]) == 0
    assert (whole / ROWS_FILE).read_bytes().startswith(before)
    assert [row["spec"]["name"] for row in rows_in(whole)[-3:]] == ["mine"] * 3
    assert main([*words, more, f"output={tmp_path / 'anew'}"]) == 0
    key = lambda row: (row["task"], row["spec"]["name"])  # noqa: E731
    assert sorted(rows_in(whole), key=key) == sorted(rows_in(tmp_path / "anew"), key=key)

    assert main([*words, "slices=[full]", f"output={whole}", "resume=true"]) == 0
    with (whole / "rows.csv").open(encoding="utf-8") as file:  # all of the sweep, whoever was named last
        assert "mine" in file.read()

    shutil.copy(tmp_path / "questions.jsonl", tmp_path / "kept.jsonl")
    (tmp_path / "questions.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n", encoding="utf-8")
    assert main([*words, f"output={whole}", "resume=true"]) == 2
    assert "tasks.choice.fingerprint: was '" in capsys.readouterr().err
    shutil.move(tmp_path / "kept.jsonl", tmp_path / "questions.jsonl")
    assert main([*words, f"output={whole}", "resume=true", "precision=bf16"]) == 2
    assert "dtype: was 'float32', now 'bfloat16'" in capsys.readouterr().err


def test_an_adapter_is_measured_and_figures_are_told_elsewhere(
    words: list[str], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words, f"adapter_path={adapter}", "slices=[full]"]
    assert main([*given, f"output={tmp_path / 'merged'}", "tensorboard=true", "wandb=offline"]) == 0
    assert list((tmp_path / "merged").rglob("events.out.tfevents.*"))
    assert list((tmp_path / "merged").rglob("*.wandb"))
    assert main([*given, f"output={tmp_path / 'apart'}", "merge=false"]) == 0
    merged, apart = ({row["task"]: row for row in rows_in(tmp_path / name)} for name in ("merged", "apart"))
    for task in ("words", "choice"):
        value, other = (rows[task]["metrics"] for rows in (merged, apart))
        name = "loss" if task == "words" else "accuracy"
        assert value[name]["value"] == pytest.approx(other[name]["value"], rel=1e-5)
    assert main([*given, f"output={tmp_path / 'merged'}", "resume=true", "merge=false"]) == 2
    assert "merge: was True, now False" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["tasks=spelling"], "tasks: there is no 'spelling'; write one of "),
        (["slices=e2b"], "slice 'e2b': skip_layers has "),
        (["slices=grid", "space.widths=[1,2,3,4,5]"], "the grid has "),
        (["shared_gib=-1"], "shared_gib is -1"),
        (["threads=0"], "threads is 0"),
        (["statistics.confidence=2"], "confidence is 2"),
        (["checkpoint=nowhere"], "nowhere"),
        (
            ["mmlu_task=spelling"],
            "mmlu_task is 'spelling', which is no task with an accuracy; name one of words, choice",
        ),
        (["mmlu_task=say"], "mmlu_task is 'say', which is no task with an accuracy"),
        (["shared_gib=inf"], "shared_gib is inf"),
        (["wandb=online"], "nobody is logged in"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_weights_are_read(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(sweep, "build_adapted", lambda *_args, **_options: pytest.fail("the model was loaded"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    given = [word for word in words if word.partition("=")[0] not in {one.partition("=")[0] for one in more}]
    assert main([*given, f"output={tmp_path / 'out'}", *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out" / ROWS_FILE).exists()


def test_a_file_in_the_place_of_results_is_told_before_tasks_are_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("kept", encoding="utf-8")
    assert main([*words, f"output={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err == f"error: output: '{tmp_path / 'out'}' is a file; give a directory\n"
    assert (tmp_path / "out").read_text(encoding="utf-8") == "kept"


def test_a_task_without_its_tower_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]},
                        {"role": "assistant", "content": "e"}]}  # fmt: skip
    (tmp_path / "seen.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "see.yaml").write_text(f"name: see\nkind: held_out\nfiles: [{tmp_path / 'seen.jsonl'}]\n")
    monkeypatch.setattr(sweep, "build_adapted", lambda *_args, **_options: pytest.fail("the model was loaded"))
    given = [word for word in words if not word.startswith("tasks=")]
    assert main([*given, f"tasks={tmp_path / 'see.yaml'}", f"output={tmp_path / 'out'}"]) == 2
    assert "task 'see'" in (told := capsys.readouterr().err)
    assert "image" in told
