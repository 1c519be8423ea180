# SPDX-License-Identifier: Apache-2.0
"""Parts of a task have no row in common, alike rows stay together, and rows that come or go move no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import ConfigError, InputError
from tests.trainer.parts import tiny_processor, write_jsonl
from trainer.evaluation.held_out_task import HeldOutTask, held_out_task
from trainer.evaluation.splits import digest_of, split
from trainer.evaluation.task_config import MetricName, TaskConfig, TaskKind

SHARES = {"search": 0.5, "calibration": 0.3, "report": 0.2}
WORDS = [first + second for first in "abcdefghijklmnopqrst" for second in "abcdefghijklmnopqrst"]


def task_of(tmp_path: Path, words: list[str]) -> HeldOutTask:
    rows = [
        {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": word}]} for word in words
    ]
    config = TaskConfig(
        name="words", kind=TaskKind.held_out, files=[str(write_jsonl(tmp_path / "rows.jsonl", rows))], batch_size=16
    )
    return held_out_task(config, tiny_processor(), [MetricName.loss])


def test_each_row_is_in_one_part_of_about_its_share(tmp_path: Path) -> None:
    task = task_of(tmp_path, WORDS)
    parts = split(task, SHARES, seed=0)
    assert sorted(item for part in parts.values() for item in part.items) == sorted(task.items)
    for name, share in SHARES.items():
        assert len(parts[name].rows) / 400 == pytest.approx(share, abs=0.08)
        assert [place for batch in parts[name].batches for place in batch] == list(range(len(parts[name].rows)))
        assert parts[name].name == name
    assert len({part.fingerprint for part in parts.values()}) == 3
    assert split(task, SHARES, seed=1)["report"].items != parts["report"].items


def test_alike_rows_stay_together_and_others_do_not_move(tmp_path: Path) -> None:
    few, many = (split(task_of(tmp_path, words), SHARES, seed=3) for words in (WORDS[:60], [*WORDS[:60], *WORDS]))
    for name in SHARES:
        own = {digest_of(row) for row in many[name].rows}
        assert {digest_of(row) for row in few[name].rows} <= own
        assert not any(own & {digest_of(row) for row in many[other].rows} for other in SHARES if other != name)


def test_pieces_of_a_text_stay_together(tmp_path: Path) -> None:
    texts = [word * 40 for word in WORDS[:30]]
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    config = TaskConfig(name="texts", kind=TaskKind.held_out, files=[str(path)], max_length_tokens=12, batch_size=16)
    task = held_out_task(config, tiny_processor(), [MetricName.loss])
    assert len(task.rows) > 3 * len(texts)
    parts = split(task, SHARES, seed=0)
    lines = {name: {row.where.partition(" (piece")[0] for row in part.rows} for name, part in parts.items()}
    assert sum(map(len, lines.values())) == len(set.union(*lines.values())) == len(texts)
    # Where a text is cut does not decide where it is.
    config = TaskConfig(name="texts", kind=TaskKind.held_out, files=[str(path)], max_length_tokens=20, batch_size=16)
    others = split(held_out_task(config, tiny_processor(), [MetricName.loss]), SHARES, seed=0)
    assert {name: {row.where.partition(" (piece")[0] for row in part.rows} for name, part in others.items()} == lines
    write_jsonl(path, [{"text": texts[0]}])
    with pytest.raises(
        InputError, match=r"give more rows.*\(1 conversations and texts; pieces of a text stay together"
    ):
        split(held_out_task(config, tiny_processor(), [MetricName.loss]), SHARES, seed=0)


def test_parts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, WORDS[:3])
    with pytest.raises(
        ConfigError, match=r"search 0\.5, report 0\.6; each must be above 0, and together they must be 1"
    ):
        split(task, {"search": 0.5, "report": 0.6}, seed=0)
    with pytest.raises(ConfigError, match="each must be above 0"):
        split(task, {"search": 1.0, "report": 0.0}, seed=0)
    with pytest.raises(InputError, match="of 3 rows none is drawn for the d split; give more rows"):
        split(task, {"d": 1e-9, "e": 1 - 1e-9}, seed=0)
