# SPDX-License-Identifier: Apache-2.0
"""The directory of a sweep: what it refuses, and what it makes of a file that ends in the middle of a line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.errors import CheckpointError, ConfigError, InputError
from model.slicing.spec import SliceSpec
from tests.trainer.sweep.swept import FULL, SPECS, Spelling, identity, swept, tasks
from trainer.evaluation.statistics import StatisticsConfig
from trainer.sweep.store import ITEMS, ROWS_FILE, SWEEP_FILE, Items, Measurement, Store

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
    first = content.index(b"\n") + 1
    for end in [*range(first - 3, first + 3), *range(0, len(content), 17), len(content) - 1]:
        path.write_bytes(content[:end])
        items = Items(path, task)
        assert path.read_bytes() == content[: first if end >= first else 0]
        assert [items.has(FULL, batch) for batch in range(2)] == [end >= first, False]
    path.write_bytes(content + b"\0" * 4096 + b"\n")  # as after a loss of power
    assert Items(path, task).has(FULL, 1)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda lines: [lines[0][:50], lines[1]], r"jsonl:1: no batch of a sweep"),
        (lambda lines: ["[]", lines[1]], r"jsonl:1: no batch of a sweep"),
        (lambda lines: [lines[0], lines[1], lines[0]], r"jsonl:3: batch 0 stands above already for sub-model 'full'"),
        (lambda lines: [lines[0].replace("spelling.jsonl:2", "other:2"), lines[1]], r"jsonl:1: .* other items"),
        (lambda lines: [lines[0].replace('"batch": 0', '"batch": 9'), lines[1]], r"jsonl:1: no batch of a sweep"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_refused_with_its_place(
    tmp_path: Path, spoil: Callable[[list[str]], list[str]], told: str
) -> None:
    task = Spelling("spelling")
    path = begun(tmp_path, task).path
    path.write_text("".join(f"{line}\n" for line in spoil(path.read_text().splitlines())))
    with pytest.raises(CheckpointError, match=told):
        Items(path, task)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model", "other", r"rows.jsonl:4: rows disagree on the model \(fingerprint\): 'other' here, 'fingerprint' in"),
        ("data", "other", r"rows.jsonl:4: rows disagree on the data of task 'lm_eval:words/hard'|another data of task"),
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
    monkeypatch.setattr("trainer.sweep.store.os.fsync", no_room)
    found = {"full": [{"loss_sum": 1.0, "tokens": 3}] * 2}
    with pytest.raises(CheckpointError, match=r"spelling.jsonl: results cannot be written .*GB are free there\)"):
        items.add(Measurement(batch=2, seconds=0.5, peak_memory_bytes=7, found=found))
    assert items.path.read_bytes() == before


def no_room(descriptor: int) -> None:
    raise OSError(28, "No space left on device")
