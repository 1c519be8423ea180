# SPDX-License-Identifier: Apache-2.0
"""What the words of a sweep mean, and what is said about those that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.config import TextConfig
from model.errors import ConfigError, SliceError
from model.slicing.official import official
from model.slicing.spec import SliceSpec
from model.slicing.trained import optional_block
from recipes.sweep_names import find_slices, find_tasks
from tests.model.slicing.test_official import E4B, TINY_15
from tests.tiny import TINY_TEXT
from trainer.evaluation.task_config import TaskKind
from trainer.search.space import SpaceConfig

TASK = """\
name: spelling
kind: held_out
files: [words.jsonl]
max_items: 5
"""


def names(written: Any, config: TextConfig = TINY_15, space: SpaceConfig | None = None) -> list[str]:
    return [one.name for one in find_slices(written, space or SpaceConfig(), config)]


def test_official_is_all_of_the_table() -> None:
    assert names("official") == names(["official"], E4B) == [row.spec.name for row in official(E4B)]


def test_a_grid_is_all_of_the_space() -> None:
    space = SpaceConfig(block=5)
    found = find_slices("grid", space, TINY_15)
    assert len(found) == len(set(found)) == 8  # two blocks of two widths, one that may be left out
    assert SliceSpec.full(TINY_15).ffn_widths in {one.ffn_widths for one in found}
    assert optional_block(TINY_15)
    with pytest.raises(ConfigError, match=r"the grid has .* sub-models, and 10,000 at most .* 'matslice search'"):
        find_slices("grid", SpaceConfig(), E4B)


def test_files_and_words_stand_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nffn_widths: [64]\n", encoding="utf-8")
    (tmp_path / "table.csv").write_text(
        "name,# Layers,# Effective Params (B),MMLU PT accuracy,FFN Hidden Dims,Layers Skipped\n"
        f'of_table,15,0.1,,"[{", ".join(["128"] * 15)}]",\n', encoding="utf-8",
    )  # fmt: skip
    words = ["full", str(tmp_path / "mine.yaml"), str(tmp_path / "table.csv"), "full"]
    assert names(words) == ["full", "mine", "of_table"]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("", "slices is ''; give a word or a list of words"),
        ([], r"slices is \[\]"),
        (7, "slices is 7"),
        ("e2c", "there is no 'e2c'; write one of .*e2b.*official, grid, or a CSV file"),
        ("nothing.yaml", "'nothing.yaml' cannot be read"),
    ],
)
def test_words_that_mean_no_sub_model_are_refused(written: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find_slices(written, SpaceConfig(), TINY_15)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full.yaml").write_text("name: full\nffn_widths: [64]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has a sub-model 'full' that is another than the one before it"):
        names(["full", str(tmp_path / "full.yaml")])


def test_a_sub_model_that_the_parent_cannot_be_is_refused() -> None:
    with pytest.raises(SliceError, match=r"slice 'e2b': skip_layers has .* parent has layers 0 to 8"):
        names("e2b", TINY_TEXT)


@pytest.mark.parametrize("content", ["name: [", "- 1\n", "nam: x\n", "name: mine\nskip_layers: text\n"])
def test_files_that_hold_no_sub_model_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.yaml.*must hold what conf/slice"):
        names(str(tmp_path / "bad.yaml"))


def test_tasks_are_files_or_those_of_the_harness(tmp_path: Path) -> None:
    (tmp_path / "spelling.yaml").write_text(TASK, encoding="utf-8")
    (task,), theirs = find_tasks([str(tmp_path / "spelling.yaml"), "lm_eval:arc_easy"])
    assert (task.name, task.kind, task.max_items) == ("spelling", TaskKind.held_out, 5)
    assert theirs == ["arc_easy"]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("arithmetic", "tasks: there is no 'arithmetic'; write one of .*lm_eval:NAME"),
        ("lm_eval:", "'lm_eval:' is without a name"),
    ],
)
def test_words_that_mean_no_task_are_refused(written: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find_tasks(written)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TASK.replace("held_out", "essay"), r"kind: Invalid value 'essay', expected one of \[held_out"),
        (TASK + "metrics: [perplexty]\n", r"metrics\[0\]: Invalid value 'perplexty', expected one of .*perplexity"),
        (TASK + "max_item: 3\n", "there is no key 'max_item'; did you mean 'max_items'"),
        (TASK + "zzz: 3\n", "there is no key 'zzz'; there are name, kind, files"),
        (TASK + "generation: {max_tokens: 3}\n", r"there is no key 'generation\.max_tokens'"),
        ("kind: held_out\nfiles: [x]\n", "name must be given"),
        ("name: [a\n", r"line 2 is no YAML \(expected "),
        ("", "name must be given"),
        ("- 1\n", "no keys with values"),
    ],
)
def test_what_a_task_must_not_be_is_said_with_its_file(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "bad.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"bad\.yaml: {told}.*; it must hold what conf/task/\*\.yaml hold"):
        find_tasks(str(tmp_path / "bad.yaml"))
