# SPDX-License-Identifier: Apache-2.0
"""A run is summed up from its log: before against after, and the figures of its steps."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from trainer.metrics import Record
from trainer.summary import Summary, summarize, summary_table


def step(number: int, loss: float, speed: float) -> Record:
    return {
        "kind": "train", "step": number, "loss": loss, "tokens_per_second": speed,
        "supervised_tokens_per_second": speed / 2, "memory_bytes": 100 + number,
    }  # fmt: skip


def measured(number: int, spec: str, loss: float) -> Record:
    return {
        "kind": "validation", "step": number, "spec": spec, "loss": loss, "perplexity": 2 * loss,
        "accuracy": 1 - loss / 10, "examples": 4,
    }  # fmt: skip


LOG = [
    {"kind": "start", "step": 0},
    measured(0, "full", 5.0), measured(0, "half", 6.0),
    step(1, 4.0, 10.0), step(2, 3.0, 100.0), measured(2, "full", 2.0), measured(2, "half", 2.5),
    step(3, 2.5, 110.0), measured(3, "full", 2.25), measured(3, "half", 2.4),
]  # fmt: skip


def test_each_sub_model_has_what_it_was_and_what_it_became() -> None:
    summary = summarize(LOG)
    full, half = summary.sizes["full"], summary.sizes["half"]
    assert full.before is not None
    assert full.after is not None
    assert full.best is not None
    assert half.after is not None
    assert half.best is not None
    assert (full.before.loss, full.after.loss, full.best.loss, full.best.step) == (5.0, 2.25, 2.0, 2)
    assert (half.after.loss, half.best.step) == (2.4, 3)


def test_figures_of_steps_are_medians_and_the_last_loss() -> None:
    summary = summarize(LOG)
    assert (summary.steps, summary.train_loss, summary.tokens_per_second) == (3, 2.5, 100.0)
    assert (summary.supervised_tokens_per_second, summary.memory_bytes) == (50.0, 103)


def test_the_base_is_never_the_best_of_what_was_trained() -> None:
    worse = summarize([measured(0, "full", 1.0), step(1, 1.0, 1.0), measured(1, "full", 3.0)]).sizes["full"]
    assert worse.best is not None
    assert worse.after is not None
    assert (worse.best.loss, worse.after.loss) == (3.0, 3.0)


def test_what_was_not_measured_since_is_not_said_to_be_as_before() -> None:
    summary = summarize([measured(0, "full", 5.0), step(1, 4.0, 10.0)])
    assert (summary.sizes["full"].after, summary.sizes["full"].best) == (None, None)
    text = io.StringIO()
    Console(file=text, width=200).print(summary_table(summary))
    assert "5.0000 → not measured" in text.getvalue()


def test_runs_that_measured_nothing_before_or_at_all_are_summed_up_too() -> None:
    assert summarize([]).steps == 0
    summary = summarize([step(1, 4.0, 10.0), measured(1, "full", 2.0)])
    assert summary.sizes["full"].before is None
    assert "2.0000" in shown(summary)


def shown(summary: Summary) -> str:
    told = io.StringIO()
    Console(file=told, width=120).print(summary_table(summary))
    return told.getvalue()


def test_a_person_sees_before_and_after_side_by_side() -> None:
    text = shown(summarize(LOG))
    assert "5.0000 → 2.2500" in text
    assert "2.0000 (2)" in text
    assert "0.400 → 0.760" in text


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    summarize(LOG).write(tmp_path / "summary.json")
    read = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert read["sizes"]["half"]["after"]["loss"] == 2.4
    assert read["steps"] == 3
