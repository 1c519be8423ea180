# SPDX-License-Identifier: Apache-2.0
"""The tables and the picture beside the page."""

import csv
import dataclasses
import json
import struct
from pathlib import Path

import pytest

from model.errors import ConfigError
from model.slicing.table import HEADER, published_rows, read_rows, read_slices
from tests.model.slicing.official import E4B
from tests.trainer.sweep.page_rows import comparisons, renamed, sweep_rows
from trainer.sweep.page.facts import Facts
from trainer.sweep.page.picture import draw_frontiers
from trainer.sweep.page.sheets import COLUMNS, write_rows_csv, write_slices_csv


@pytest.fixture(scope="module")
def facts() -> Facts:
    rows = list(sweep_rows())
    return Facts(rows=rows, config=E4B.text, comparisons=comparisons(rows))


def test_every_figure_stands_in_the_table_unrounded(facts: Facts, tmp_path: Path) -> None:
    write_rows_csv(facts, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == COLUMNS
    found = {
        (line["spec"], line["task"], line["metric"]): line
        for line in (dict(zip(header, x, strict=True)) for x in lines)
    }
    assert len(found) == len(lines) == sum(len(row.metrics) for row in facts.rows)
    for row in facts.rows:
        for name, figure in row.metrics.items():
            line = found[row.spec.name, row.task, name]
            assert float(line["value"]) == figure.value
            assert float(line["low"]) == figure.low
            assert json.loads(line["ffn_widths"]) == list(row.spec.ffn_widths)
            assert int(line["effective_parameters"]) == row.effective_parameters
            change = facts.change(row.spec.name, row.task, name)
            assert line["difference"] == ("" if change is None else json.dumps(change.value))


def test_names_are_no_formulas(facts: Facts, tmp_path: Path) -> None:
    rows = [renamed(row, task="=HYPERLINK(1)") for row in facts.rows if row.task == "chat"]
    write_rows_csv(Facts(rows=rows, config=E4B.text), tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        assert {line["task"] for line in csv.DictReader(file)} == {"'=HYPERLINK(1)"}


def test_sub_models_are_read_again_from_googles_schema(facts: Facts, tmp_path: Path) -> None:
    path = tmp_path / "slices.csv"
    write_slices_csv(facts, path, mmlu_task=None)
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(HEADER)
    found = read_slices(path)
    assert len(found) == len(facts.subs)
    for row in facts.subs:
        written = found[row.official or row.spec.name]
        assert tuple(layer for layer in range(35) if layer not in written.skip_layers) == row.spec.kept_layers
        assert tuple(written.ffn_widths) == row.spec.ffn_widths
    assert {row.accuracy for row in read_rows(path)} == {""}


def test_googles_own_rows_are_written_as_google_has_them(facts: Facts, tmp_path: Path) -> None:
    """All cells but the accuracy, which is ours, and the size, which Google rounds otherwise."""
    path = tmp_path / "slices.csv"
    write_slices_csv(facts, path, mmlu_task="arc_easy")
    ours = {row.name: row for row in read_rows(path)}
    for row in published_rows():
        assert ours[row.name].written == row.written
        assert abs(float(ours[row.name].size) - float(row.size)) < 0.021
    for row in facts.rows:
        if row.task == "arc_easy":
            assert ours[row.official or row.spec.name].accuracy == f"{row.metrics['accuracy'].value:.2%}"


@pytest.mark.parametrize("task", ["speech", "none"])
def test_a_task_without_accuracy_is_no_mmlu(facts: Facts, tmp_path: Path, task: str) -> None:
    with pytest.raises(ConfigError, match="choose one of chat, arc_easy"):
        write_slices_csv(facts, tmp_path / "slices.csv", mmlu_task=task)


def test_one_official_name_for_two_sub_models_is_given_to_the_first(facts: Facts, tmp_path: Path) -> None:
    main = next(row for row in facts.rows if row.official == "Main model")
    again = renamed(dataclasses.replace(main), spec="main_again")
    write_slices_csv(Facts(rows=[main, again], config=E4B.text), tmp_path / "slices.csv", mmlu_task=None)
    assert list(read_slices(tmp_path / "slices.csv")) == ["Main model", "main_again"]


def test_the_picture_has_a_panel_per_task(facts: Facts, tmp_path: Path) -> None:
    sizes: list[tuple[int, int]] = []
    for tasks in (("chat",), ("chat", "arc_easy", "speech")):
        rows = [row for row in facts.rows[::3] if row.task in tasks]
        draw_frontiers(Facts(rows=rows, config=E4B.text), tmp_path / "frontier.png")
        head = (tmp_path / "frontier.png").read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        sizes.append(struct.unpack(">II", head[16:]))
    (one, height), (three, same) = sizes
    assert (three, same) == (3 * one, height)
