# SPDX-License-Identifier: Apache-2.0
"""The demo, with few articles, clips and steps: it runs to its end, and what it leaves can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.config import ModelConfig
from model.slicing.lineage import LINEAGE_FILE
from recipes import demo, demo_data
from recipes.demo_data import ATTRIBUTION_FILE
from recipes.demo_text import Article, read_articles

SIZES = ["full", "tiny_mix_wide", "tiny_mix_short", "tiny_e2b"]
TASKS = ["topic", "digit", "say"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick demo leaves."""
    directory = tmp_path_factory.mktemp("a b") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_data, "read_articles", few_articles)
        patch.setattr(demo_data, "VALIDATION_ROWS", 2)
        status = demo.main([
            f"output='{directory}'", "base_steps={describe: 1, read: 1, hear: 1}", "synthetic_clips=10", "copies=1",
            "adapter_steps={topic: 1, digit: 1, say: 1}", "batch_size=4", "held_out_examples=10", "text_characters=60",
        ])  # fmt: skip
    assert status == 0
    return directory


def few_articles(text_characters: int) -> list[Article]:
    return read_articles(text_characters)[:300]


@pytest.mark.slow
def test_every_size_is_reported_on_every_task_before_and_after(output: Path) -> None:
    rows = [json.loads(line) for line in (output / "report.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["size"] for row in rows] == SIZES
    assert all(list(row["tasks"]) == TASKS for row in rows)
    scores = [score for row in rows for score in row["tasks"].values()]
    assert all(score["examples"] == 10 and score["loss_before"] != score["loss_after"] for score in scores)
    assert sorted(rows, key=lambda row: -row["parameters"]) == rows


@pytest.mark.slow
def test_the_table_and_the_picture_are_written(output: Path) -> None:
    assert "tiny_e2b" in (output / "report.md").read_text(encoding="utf-8")
    assert (output / "report.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", SIZES)
def test_every_size_is_a_checkpoint_of_its_own_that_sees_and_hears(output: Path, when: str, name: str) -> None:
    directory = output / "sizes" / when / name
    config = ModelConfig.read(directory)
    assert config.text.num_hidden_layers == (15 if name in ("full", "tiny_mix_wide") else 10)
    assert config.vision is not None
    assert config.audio is not None
    files = {path.name for path in directory.iterdir()}
    assert {LINEAGE_FILE, "tokenizer.json", "preprocessor_config.json", ATTRIBUTION_FILE} <= files


def test_a_demo_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    output = demo.claim(tmp_path / "demo")
    (output / "sizes/after/full").mkdir(parents=True)
    (output / "notes.txt").touch()
    demo.claim(output)
    assert sorted(path.name for path in output.iterdir()) == [demo.MARKER, "notes.txt"]


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").touch()
    assert demo.main([f"output={tmp_path}"]) == 2
    assert "not from a demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_size_that_answers_must_be_one_of_the_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["asked=huge"]) == 2
    assert "it must be one of sizes: full, tiny_mix_wide" in capsys.readouterr().err
