# SPDX-License-Identifier: Apache-2.0
"""A sweep finds of each sub-model what it would find of it alone, redoes nothing, and refuses what it cannot do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from model.errors import ConfigError, InputError, MatsliceError, SliceError
from model.slicing.official import official
from model.slicing.plan import StoredAs
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from tests.tiny import TINY_TEXT, tiny_config, tiny_multimodal_config
from tests.trainer.sweep.swept import (
    FULL,
    LOSS,
    SPECS,
    Spelling,
    about,
    engine,
    identity,
    swept,
    tasks,
    timeless,
)
from trainer.evaluation.held_out_task import FIGURES
from trainer.evaluation.statistics import StatisticsConfig, samples
from trainer.evaluation.task_config import MetricName
from trainer.sweep.items import Measurement
from trainer.sweep.row import read_rows
from trainer.sweep.run import About, Progress, check, compare, official_of, samples_of, sweep
from trainer.sweep.store import ROWS_FILE, Store

ALL = list(SPECS.values())
ECE = FIGURES[MetricName.ece]


def test_a_sweep_of_many_is_as_many_sweeps_of_one(tmp_path: Path) -> None:
    together = swept(tmp_path / "all")
    assert [row.key for row in together] == [(name, task.name) for task in tasks() for name in SPECS]
    alone = {row.key: row for name in SPECS for row in swept(tmp_path / name, [name])}
    assert timeless(together) == timeless([alone[row.key] for row in together])
    assert timeless([row for _, row in read_rows(tmp_path / "all" / ROWS_FILE)]) == timeless(together)
    losses = [row.metrics["loss"] for row in together]
    assert len({loss.value for loss in losses}) == len(losses)
    assert all(loss.low < loss.value < loss.high for loss in losses)
    task, spec = tasks()[1], SPECS["short"]
    directly = [values for batch in task.batches for values in task.measure(engine(), [spec], batch)[0]]
    assert together[-1].metrics["loss"].value == LOSS.of(directly)
    assert together[-1].num_items == len(directly)


def test_what_is_finished_is_not_redone_and_what_is_added_is_measured_alone(tmp_path: Path) -> None:
    first = swept(tmp_path, ["full", "short"])
    before = (tmp_path / ROWS_FILE).read_text()
    again = tasks()
    assert swept(tmp_path, ["full", "short"], tasks=again) == first
    assert not any(task.asked for task in again)
    rows = swept(tmp_path, tasks=again)
    assert [task.asked for task in again] == [
        [(("narrow",), batch.start) for batch in task.batches] for task in again
    ]  # fmt: skip
    assert (tmp_path / ROWS_FILE).read_text().startswith(before)
    assert timeless(rows) == timeless(swept(tmp_path / "at_once"))
    assert swept(tmp_path, ["narrow"]) == [row for row in rows if row.spec.name == "narrow"]


def test_seconds_are_shared_evenly_among_those_measured_at_once(tmp_path: Path) -> None:
    rows = swept(tmp_path, ["full", "short"])
    for task in tasks():
        pair = [row for row in rows if row.task == task.name]
        lines = [json.loads(line) for line in items_file(tmp_path, task).read_text().splitlines()]
        seconds = sum(line["seconds"] for line in lines if line["spec"] == "full")
        assert {line["together"] for line in lines} == {2}
        assert [row.seconds_together for row in pair] == pytest.approx([seconds] * 2)
        assert [row.seconds for row in pair] == pytest.approx([seconds / 2] * 2)
        assert all(row.peak_memory_bytes > 10 << 20 for row in pair)


def items_file(directory: Path, task: Spelling) -> Path:
    with contextlib.closing(Store(directory, identity(), ALL, resume=True)) as store:
        return store.items_path(task.name)


def test_progress_is_told_batch_by_batch(tmp_path: Path) -> None:
    told: list[Progress] = []
    for _ in range(2):
        with contextlib.closing(Store(tmp_path, identity(), ALL, resume=True)) as store:
            sweep(engine(), tasks(), ALL, store, about(), told.append)
    places = [(one.task_number, one.batches_done, one.num_batches, one.num_specs) for one in told]
    assert places == [
        *[(1, n, 5, 3) for n in range(1, 6)],
        *[(2, n, 3, 3) for n in range(1, 4)],
        (1, 5, 5, 0),
        (2, 3, 3, 0),
    ]


def test_rows_say_what_is_published_of_their_sub_model() -> None:
    officials = official(TINY_TEXT)
    named = next(one for one in officials if one.name == "Main model")
    assert official_of(FULL, officials) == named
    last = officials[-1]
    assert official_of(last.spec, officials) == last
    assert official_of(SliceSpec("odd", (0, 1, 2), (1, 2, 3)), officials) is None


def test_accuracies_are_told_of_the_published_model_alone(tmp_path: Path) -> None:
    def row_of(directory: Path, *, is_itself: bool) -> tuple[str | None, float | None]:
        officials = [dataclasses.replace(one, is_itself=is_itself) for one in official(TINY_TEXT)]
        beside = About(config=tiny_config(), officials=officials, stored_as=StoredAs.fp32, context_tokens=9)
        with contextlib.closing(Store(directory, identity(), [FULL], resume=False)) as store:
            row = sweep(engine(), tasks(), [FULL], store, beside)[0]
        assert (row.stored_as, row.flops_context_tokens) == (StoredAs.fp32, 9)
        return row.official, row.mmlu

    assert row_of(tmp_path / "itself", is_itself=True) == ("Main model", 0.623)
    assert row_of(tmp_path / "like_it", is_itself=False) == ("Main model", None)


def test_sub_models_are_compared_item_by_item(tmp_path: Path) -> None:
    found = identity()
    with contextlib.closing(Store(tmp_path, found, ALL, resume=False)) as store:
        rows = sweep(engine(), tasks(), ALL, store, about())
        comparison = compare(tasks()[0], ALL, store, parent=FULL)
    losses = {row.spec.name: row.metrics["loss"] for row in rows[:3]}
    between = comparison.differences["loss"]
    assert between.keys() == {"narrow", "short"}
    for name, change in between.items():
        assert change.value == losses[name].value - losses["full"].value
        assert change.low < change.value < change.high
    for name, wide in comparison.bands["loss"].items():
        assert wide.low <= losses[name].low <= losses[name].high <= wide.high
    assert comparison.differences.keys() == comparison.bands.keys() == {"loss", "perplexity"}


@pytest.mark.parametrize(
    ("tasks", "specs", "error", "told"),
    [
        ([], ALL, ConfigError, "there is no task"),
        ([Spelling("a")], [], ConfigError, "there is no sub-model"),
        ([Spelling("a"), Spelling("a")], ALL, ConfigError, "two tasks 'a'"),
        ([Spelling("a")], [FULL, SliceSpec("full", (0,), (1,))], ConfigError, "two sub-models 'full'"),
        ([Spelling("a")], [SliceSpec("wide", (0,), (99,))], SliceError, "'wide': layer 0 asks for width 99"),
        ([Spelling("a", num_items=0)], ALL, InputError, "task 'a' has no items"),
        ([Spelling("a", modalities=frozenset({Modality.audio}))], ALL, ConfigError, "the audio tower, .*has text"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_before_anything_is_measured(
    tasks: Sequence[Spelling], specs: Sequence[SliceSpec], error: type[MatsliceError], told: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        check(tiny_config(), tasks, specs)
    with (
        contextlib.closing(Store(tmp_path, identity(tasks=tasks), specs, resume=False)) as store,
        pytest.raises(error, match=told),
    ):
        sweep(engine(), tasks, specs, store, about())
    assert not any(task.asked for task in tasks)


def test_a_tower_that_is_there_is_no_obstacle() -> None:
    check(tiny_multimodal_config(), [Spelling("a", modalities=frozenset({Modality.audio, Modality.vision}))], ALL)


@pytest.mark.parametrize("batches", [[range(8)], [range(9), range(8, 9)], [range(10)]])
def test_batches_that_lose_or_double_items_are_refused(batches: list[range], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spelling, "batches", batches)
    with pytest.raises(InputError, match="each of its 9 items once"):
        check(tiny_config(), [Spelling("a")], ALL)


def test_batches_in_any_order_give_items_in_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_order = swept(tmp_path / "in_order")
    batches: Callable[[Spelling], Sequence[range]] = Spelling.batches.fget  # type: ignore[attr-defined, assignment]
    monkeypatch.setattr(Spelling, "batches", property(lambda task: batches(task)[::-1]))
    assert timeless(swept(tmp_path / "reversed")) == timeless(in_order)


def test_what_was_found_of_many_sub_models_is_never_all_in_memory(tmp_path: Path) -> None:
    """Of calibration, whose sums have 30 parts: resampled, they take a megabyte of each sub-model."""
    specs = [SliceSpec(f"spec_{number}", FULL.kept_layers, FULL.ffn_widths) for number in range(48)]
    task = Spelling("calibrated", num_items=100, batch_size=100, metrics=(ECE,))
    found = identity(tasks=[task], statistics=StatisticsConfig())
    drawn = np.random.default_rng(0)
    with contextlib.closing(Store(tmp_path, found, specs, resume=False)) as store:
        items = store.items(task)
        for start in range(0, len(specs), 8):
            items.add(Measurement(batch=0, seconds=1.0, peak_memory_bytes=1, found={
                spec.name: [{"bins": drawn.random((10, 3)).tolist()} for _ in task.items]
                for spec in specs[start : start + 8]
            }))  # fmt: skip
        tracemalloc.start()
        try:
            values = {spec.name: of["ece"].value for spec, of in samples_of(task, specs, items, found.statistics)}
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # All at once would be three times as much; each is what it is alone.
        assert most < 36 << 20
        alone = samples([ECE], {"x": items.found(specs[40])}, found.statistics, task=task.name)["ece"]["x"]
    assert values["spec_40"] == alone.value
    assert len(set(values.values())) == len(specs)
