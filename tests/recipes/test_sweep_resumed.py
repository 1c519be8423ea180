# SPDX-License-Identifier: Apache-2.0
"""A sweep that is gone on with after something has changed: what decides figures is refused, all else is mended."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.tower_config import Modality
from recipes.build import fingerprint_of, media_record
from recipes.cli import main
from recipes.sweep import versions_of
from tests.trainer.parts import tiny_media_processor
from tests.trainer.sweep.swept import Spelling
from trainer.evaluation.comparing import FIGURES
from trainer.evaluation.task_config import MetricName
from trainer.sweep.store import ROWS_FILE, Store


@pytest.fixture
def begin(weights: Path, chat: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command of a sweep over tasks of these names, each with what is said of it."""
    shutil.copytree(weights, tmp_path / "weights")
    shutil.copy(chat, tmp_path / "rows.jsonl")

    def command(**tasks: dict[str, Any]) -> list[str]:
        for name, written in tasks.items():
            usual = {
                "name": name, "kind": "held_out", "files": [str(tmp_path / "rows.jsonl")], "batch_size": 3,
                "max_items": 6,
            }  # fmt: skip
            (tmp_path / f"{name}.yaml").write_text(json.dumps({**usual, **written}), encoding="utf-8")
        files = ",".join(str(tmp_path / f"{name}.yaml") for name in tasks)
        return [
            "sweep", f"checkpoint={tmp_path / 'weights'}", f"tasks=[{files}]", f"output={tmp_path / 'out'}",
            "statistics.num_resamples=60",
        ]  # fmt: skip

    for name, width in (("a", 16), ("b", 24)):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nffn_widths: [{width}]\n", encoding="utf-8")
    return command


def slices(directory: Path, *names: str) -> str:
    return f"slices=[{','.join(str(directory / f'{name}.yaml') for name in names)}]"


def rows_in(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / ROWS_FILE).read_text(encoding="utf-8").splitlines()]


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def test_what_a_model_computes_by_is_part_of_what_it_is(
    begin: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say = {"kind": "generation", "generation": {"max_new_tokens": 2}}
    command = begin(words={}, say={**say, "metrics": ["exact_match"]})
    assert main([*command, slices(tmp_path, "a")]) == 0
    config = tmp_path / "weights" / "config.json"
    before, written = fingerprint_of(tmp_path / "weights", None), config.read_text(encoding="utf-8")

    def colder(values: dict[str, Any]) -> None:
        values.get("text_config", values).update(rms_norm_eps=0.5, final_logit_softcapping=1.0)

    edit(config, colder)
    assert fingerprint_of(tmp_path / "weights", None) != before
    capsys.readouterr()
    assert main([*command, slices(tmp_path, "a", "b"), "resume=true"]) == 2
    told = capsys.readouterr().err
    assert "config.text.rms_norm_eps: was 1e-06, now 0.5" in told
    assert "config.text.final_logit_softcapping: was " in told

    config.write_text(json.dumps(json.loads(written), indent=7), encoding="utf-8")  # the same, written otherwise
    assert fingerprint_of(tmp_path / "weights", None) == before
    begin(words={"metrics": ["accuracy"]}, say={**say, "metrics": ["vqa_match"]})
    assert main([*command, slices(tmp_path, "a"), "resume=true"]) == 2
    told = capsys.readouterr().err
    assert "tasks.say.metrics: was ['exact_match'], now ['vqa_match']" in told
    assert "tasks.words.metrics: was ['loss', " in told
    assert len(rows_in(tmp_path / "out")) == 4


def test_what_a_stopped_sweep_found_of_others_is_shown_and_what_it_did_not_is_a_dash(
    begin: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = begin(first={}, second={"max_items": 5})
    (tmp_path / "whole.yaml").write_text("name: whole\nffn_widths: [48]\n", encoding="utf-8")
    add = Store.add

    def stopped(store: Store, rows: Any) -> None:
        add(store, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Store, "add", stopped)
        main([*command, slices(tmp_path, "a", "b", "whole")])
    assert [(row["spec"]["name"], row["task"]) for row in rows_in(tmp_path / "out")] == [
        (name, "first") for name in ("a", "b", "whole")
    ]
    capsys.readouterr()
    assert main([*command, slices(tmp_path, "a"), "resume=true"]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if len(line.split()) > 3}
    assert lines["b"].count("–") == lines["whole"].count("–") == 1
    assert lines["a"].count("–") == lines["full"].count("–") == 0
    found = {(row["spec"]["name"], row["task"]): row for row in rows_in(tmp_path / "out")}
    assert found.keys() == {
        *[(name, "first") for name in ("a", "b", "whole", "full")], ("full", "second"), ("a", "second"),
    }  # fmt: skip
    assert found["whole", "first"]["metrics"] == found["full", "first"]["metrics"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 0


def test_how_media_are_prepared_is_known_of_those_that_tasks_have() -> None:
    processor = tiny_media_processor()
    assert processor.images is not None
    record = media_record(processor, [Modality.text, Modality.vision])
    assert record.keys() == {"vision"}
    assert record["vision"]["height"] == processor.images.settings.height
    assert media_record(processor, Modality).keys() == {"vision", "audio"}
    assert media_record(processor, [Modality.text]) == {}


def test_versions_are_those_of_what_the_metrics_are_computed_by() -> None:
    usual = versions_of([Spelling("a")])
    assert {"torch", "numpy"} < usual.keys()
    metrics = (FIGURES[MetricName.wer], FIGURES[MetricName.cer], FIGURES[MetricName.rouge_l])
    assert versions_of([Spelling("a", metrics=metrics)]).keys() - usual.keys() == {"jiwer", "rouge-score"}
