# SPDX-License-Identifier: Apache-2.0
"""The directory of a sweep: what it refuses, and what it makes of a file that ends in the middle of a line."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.errors import CheckpointError, ConfigError, InputError
from model.slicing.spec import SliceSpec
from tests.trainer.sweep.swept import FULL, LOSS, SPECS, Spelling, identity, swept, tasks, timeless
from trainer.evaluation.statistics import StatisticsConfig
from trainer.sweep.items import Items, Measurement
from trainer.sweep.row import read_rows
from trainer.sweep.store import ITEMS, ROWS_FILE, SWEEP_FILE, Store

ALL = list(SPECS.values())


def opened(directory: Path, specs: list[SliceSpec] = ALL, *, resume: bool = True, **changes: Any) -> Store:
    return Store(directory, identity(**changes), specs, resume=resume)


def begun(directory: Path, task: Spelling, *, batches: int = 2) -> Items:
    """A sweep with some batches of a task, which are of one value."""
    with contextlib.closing(opened(directory, tasks=[task], resume=False)) as store:
        items = store.items(task)
        for number in range(batches):
            found = {name: [{"loss_sum": 0.1 + number, "tokens": 3}] * len(task.batches[number]) for name in SPECS}
            items.add(Measurement(batch=number, seconds=0.5, peak_memory_bytes=7, found=found))
        return items


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "other"}, "model: was 'fingerprint', now 'other'"),
        ({"dtype": "bfloat16"}, "dtype: was 'float32', now 'bfloat16'"),
        ({"reference": None}, r"reference: was \['full', .*\], now None"),
        ({"reference": SliceSpec("full", (0,), (3,))}, r"reference: was .*now \['full', \[0\], \[3\]\]"),
        ({"settings": {"batch_size": 4}}, "batch_size: was 2, now 4"),
        ({"settings": {}}, "batch_size: was 2, now 'nothing'"),
        ({"statistics": StatisticsConfig(num_resamples=61)}, "statistics.num_resamples: was 60, now 61"),
        ({"tasks": [Spelling("spelling", fingerprint="x")]}, "tasks.spelling.fingerprint: was 'of the .*', now 'x'"),
        ({"tasks": [Spelling("spelling", metrics=(LOSS,))]}, r"metrics: was \['loss', 'perplexity'\], now \['loss'\]"),
        ({"tasks": [Spelling("spelling", batch_size=3)]}, r"batches: was \[2, 2, 2, 2, 1\], now \[3, 3, 3\]"),
        ({"tasks": [Spelling("arc")]}, r"(?s)tasks.arc.items: was 'nothing', now 9.*spelling.items: was 9, now 'noth"),
    ],
)
def test_another_sweep_is_refused_by_its_keys_with_both_values(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    task = Spelling("spelling")
    begun(tmp_path, task)
    with pytest.raises(CheckpointError, match=told) as refused:
        opened(tmp_path, **{"tasks": [task], **changes})
    assert str(tmp_path / SWEEP_FILE) in str(refused.value)
    opened(tmp_path, tasks=[task]).close()  # the lock was left, too


def test_sub_models_may_be_added_but_mean_what_they_meant(tmp_path: Path) -> None:
    task = Spelling("spelling")
    begun(tmp_path, task)
    more = SliceSpec("more", FULL.kept_layers, (5,) * 9)
    opened(tmp_path, [FULL, more], tasks=[task]).close()
    assert json.loads((tmp_path / SWEEP_FILE).read_text())["specs"].keys() == {*SPECS, "more"}
    with pytest.raises(CheckpointError, match=r"specs.more: was .*\[5, 5, .*now .*\[6, 6"):
        opened(tmp_path, [SliceSpec("more", FULL.kept_layers, (6,) * 9)], tasks=[task])


def test_a_sweep_is_gone_on_with_only_if_that_is_asked_for(tmp_path: Path) -> None:
    opened(tmp_path, resume=False).close()
    opened(tmp_path, resume=False, model="other").close()  # nothing was measured: nothing is lost
    task = Spelling("spelling")
    begun(tmp_path, task)
    with pytest.raises(ConfigError, match="already holds a sweep; go on with it by resume=true"):
        opened(tmp_path, tasks=[task], resume=False)


def test_a_directory_is_one_sweeps_at_a_time(tmp_path: Path) -> None:
    with (
        contextlib.closing(opened(tmp_path)),
        pytest.raises(ConfigError, match=f"a sweep or a search is going on in '{tmp_path}'"),
    ):
        opened(tmp_path)
    opened(tmp_path).close()


def test_other_surroundings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Spelling("spelling")
    begun(tmp_path, task)
    opened(tmp_path, tasks=[task], surroundings={"torch": "3.0"}).close()
    assert "not with the same rounding: torch 2.0 → 3.0" in capsys.readouterr().err
    opened(tmp_path, tasks=[task], surroundings={"torch": "3.0"}).close()
    assert capsys.readouterr().err == ""


def test_results_without_what_they_are_of_are_refused(tmp_path: Path) -> None:
    task = Spelling("spelling")
    begun(tmp_path, task)
    for content, told in (("{", "not what a sweep writes"), ("{}", "not what a sweep writes"), (None, "but no sweep")):
        (tmp_path / SWEEP_FILE).unlink()
        if content is not None:
            (tmp_path / SWEEP_FILE).write_text(content)
        with pytest.raises(CheckpointError, match=told):
            opened(tmp_path, tasks=[task])


def test_wherever_a_file_ends_whole_batches_are_left(tmp_path: Path) -> None:
    task = Spelling("spelling", num_items=3)
    path = begun(tmp_path, task).path
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    keys = [(name, batch) for batch in range(2) for name in SPECS]  # of the lines
    for end in {first + step for first in ends for step in range(-3, 4)} | set(range(0, len(content), 97)):
        path.write_bytes(content[:end])
        items = Items(path, task, identity())
        whole = sum(one <= end for one in ends)
        assert path.read_bytes() == content[: [0, *ends][whole]]
        assert [items.has(SPECS[name], batch) for name, batch in keys] == [place < whole for place in range(len(keys))]
        assert items.has_all(SPECS["short"]) == (whole == len(ends))
    path.write_bytes(content + b"\0" * 4096 + b"\n")  # as after a loss of power
    assert Items(path, task, identity()).has(FULL, 1)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda lines: [lines[0][:50], lines[1]], r"jsonl:1: no batch of a sweep"),
        (lambda lines: ["[]", lines[1]], r"jsonl:1: no batch of a sweep"),
        (lambda lines: [lines[0], lines[1], lines[0]], r"jsonl:3: batch 0 stands above already for sub-model 'full'"),
        (lambda lines: [lines[0].replace("spelling 1", "spelling 7"), lines[1]], r"jsonl:1: .* other items"),
        (lambda lines: [lines[0].replace('"found": [{', '"found": [{}, {'), lines[1]], r"jsonl:1: .* other items"),
        (lambda lines: [lines[0].replace('"batch": 0', '"batch": 9'), lines[1]], r"jsonl:1: no batch of a sweep"),
        (lambda lines: [lines[0].replace('"batch": 0', '"batch": -1'), lines[1]], r"jsonl:1: no batch of a sweep"),
        (lambda lines: [lines[0].replace('"settings": "', '"settings": "0'), lines[1]], r"another sweep: its settings"),
        (lambda lines: [lines[0].replace('"seed": 0', '"seed": 1'), lines[1]], r"another sweep: its seed is 1, here"),
        (lambda lines: [lines[0].replace('"fingerprint"', '"x"'), lines[1]], r"its model is 'x', here it is 'fingerpr"),
        (lambda lines: [lines[0].replace('"data": "of', '"data": "if'), lines[1]], r"jsonl:1: .* its data is 'if the"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_refused_with_its_place(
    tmp_path: Path, spoil: Callable[[list[str]], list[str]], told: str
) -> None:
    task = Spelling("spelling")
    path = begun(tmp_path, task).path
    path.write_text("".join(f"{line}\n" for line in spoil(path.read_text().splitlines())))
    with pytest.raises(CheckpointError, match=told):
        Items(path, task, identity())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model", "other", r"rows.jsonl:4: rows disagree on the model \(fingerprint\): 'other' here, 'fingerprint' in"),
        ("data", "other", r"rows.jsonl:5: rows disagree on the data of task 'lm_eval:words/hard' .*rows.jsonl:4"),
        ("task", "other", r"rows.jsonl:4: the row is of another data of task 'other' \('w'\) than this sweep \(None\)"),
    ],
)
def test_a_row_that_is_not_this_sweeps_is_refused_with_its_place(
    tmp_path: Path, key: str, value: str, told: str
) -> None:
    swept(tmp_path)
    path = tmp_path / ROWS_FILE
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {key: value})
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(InputError, match=told):
        opened(tmp_path)


def test_names_that_no_file_can_bear_do_not_leave_the_directory(tmp_path: Path) -> None:
    with contextlib.closing(opened(tmp_path)) as store:
        paths = [store.items_path(name) for name in ("a/b", "a:b", "../a", "a b", *[task.name for task in tasks()])]
    assert {path.parent for path in paths} == {tmp_path / ITEMS}
    assert len(set(paths)) == len(paths)


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Spelling("spelling")
    items = begun(tmp_path, task)
    before = items.path.read_bytes()
    monkeypatch.setattr("trainer.sweep.lines.os.fsync", no_room)
    found = {"full": [{"loss_sum": 1.0, "tokens": 3}] * 2}
    with pytest.raises(CheckpointError, match=r"spelling.jsonl: results cannot be written .*GB are free there\)"):
        items.add(Measurement(batch=2, seconds=0.5, peak_memory_bytes=7, found=found))
    assert items.path.read_bytes() == before


def no_room(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_what_a_line_says_it_is_of(tmp_path: Path) -> None:
    swept(tmp_path)
    for task in tasks():
        with contextlib.closing(opened(tmp_path)) as store:
            path = store.items_path(task.name)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == len(SPECS) * len(task.batches)
        for line in lines:
            assert (line["model"], line["data"], line["seed"]) == ("fingerprint", task.fingerprint, 0)
            batch = task.batches[line["batch"]]
            assert line["items"] == [task.items[item] for item in batch]
            assert line["digests"] == [task.digests[item] for item in batch]


def test_items_are_told_by_what_they_are_wherever_their_files_lie(tmp_path: Path) -> None:
    rows = swept(tmp_path)
    moved = tasks()
    for task in moved:
        task.place = "elsewhere"
    assert swept(tmp_path, tasks=moved) == rows
    assert not any(task.asked for task in moved)


@pytest.mark.parametrize("keep", [0, 1, 4])
def test_rows_without_all_their_items_are_measured_anew(
    tmp_path: Path, keep: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = swept(tmp_path)
    with contextlib.closing(opened(tmp_path)) as store:
        path = store.items_path("spelling")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:keep])) if keep else path.unlink()
    with contextlib.closing(opened(tmp_path)) as store:
        assert {task for _, task in store.rows} == {"lm_eval:words/hard"}
        items = store.items(tasks()[0])
        with pytest.raises(CheckpointError, match=r"under sub-model 'full' is not all there .*resume=true"):
            items.found(FULL)
    told = capsys.readouterr().err
    assert "items of spelling are not all there, so rows of full, narrow, short are taken out" in told
    again = tasks()
    assert timeless(swept(tmp_path, tasks=again)) == timeless(rows)
    assert len(again[0].asked) >= len(again[0].batches) - 1
    assert not again[1].asked
    assert Counter(row.key for _, row in read_rows(tmp_path / ROWS_FILE)) == Counter(row.key for row in rows)
