# SPDX-License-Identifier: Apache-2.0
"""Directories appear whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.checkpoint import directory as directories
from model.checkpoint.directory import check_room, whole_directory
from model.checkpoint.reader import INDEX_FILE, WEIGHTS_FILE
from model.errors import CheckpointError
from model.processor.tokenizer import MEDIA_FILES
from model.slicing.adapter import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from model.slicing.checkpoint import CARRIED_FILES
from model.slicing.lineage import CARD_FILE, LINEAGE_FILE


def write(target: Path, content: str, *, overwrite: bool = False) -> None:
    with whole_directory(target, overwrite=overwrite, marker="config.json") as directory:
        (directory / "config.json").write_text(content)


def fail_to_write(target: Path, *, overwrite: bool = False) -> None:
    with whole_directory(target, overwrite=overwrite, marker="config.json") as directory:
        (directory / "config.json").write_text("half")
        raise RuntimeError


def test_nothing_is_left_of_a_directory_that_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_to_write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_leaves_the_old_directory(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(RuntimeError):
        fail_to_write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwriting_replaces_the_whole_directory(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "model-00001-of-00002.safetensors").write_text("stale")
    write(tmp_path / "out", "new", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(CheckpointError, match="not empty; choose another directory"):
        write(tmp_path / "out", "new")


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "new"


def test_a_directory_of_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        write(tmp_path / "photos", "new", overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


@pytest.mark.parametrize(
    "name", ["thesis.txt", ".git/HEAD", "adapter/notes.txt", "adapter/model.safetensors", "private/model.safetensors"]
)
def test_a_directory_that_holds_something_foreign_is_never_overwritten(tmp_path: Path, name: str) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("precious")
    foreign = name if name.startswith("adapter") else Path(name).parts[0]
    with pytest.raises(CheckpointError, match=f"out: holds '{foreign}', which would be lost, .*; move it elsewhere"):
        write(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / name).read_text() == "precious"
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_all_that_is_written_beside_weights_may_be_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "adapter").mkdir()
    written = [*CARRIED_FILES, *MEDIA_FILES, WEIGHTS_FILE, INDEX_FILE, LINEAGE_FILE, CARD_FILE]
    written += [f"adapter/{name}" for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, LINEAGE_FILE)]
    for name in written:
        (tmp_path / "out" / name).write_text("old")
    write(tmp_path / "out", "new", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_a_link_that_leads_in_a_circle_is_no_place_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for target in (tmp_path / "loop", tmp_path / "loop" / "within"):
        with pytest.raises(CheckpointError, match="is a link that leads back to itself"):
            write(target, "new", overwrite=True)
    assert (tmp_path / "loop").is_symlink()


def test_a_file_is_no_place_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file"):
        write(tmp_path / "out", "new")


def leave_behind(target: Path) -> Path:
    """What a process leaves that was killed while it wrote ``target``."""
    remains = target.with_name(f".{target.name}.0123abcd.partial")
    remains.mkdir(parents=True)
    (remains / "model.safetensors").write_text("half")
    return remains


def test_what_a_killed_process_left_is_removed_by_the_next_to_the_same_target(tmp_path: Path) -> None:
    remains, others = leave_behind(tmp_path / "out"), leave_behind(tmp_path / "out2")
    write(tmp_path / "out", "new")
    assert not remains.exists()
    assert others.exists()


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "out", marker="config.json") as living:
        (living / "config.json").write_text("first")
        write(tmp_path / "out2", "new")
        with pytest.raises(RuntimeError):
            fail_to_write(tmp_path / "out")
        assert (living / "config.json").read_text() == "first"
    assert (tmp_path / "out" / "config.json").read_text() == "first"


def test_where_there_are_no_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(directories.fcntl, "flock", unknown)
    remains = leave_behind(tmp_path / "out")
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert remains.exists()


def test_of_two_that_write_the_same_target_the_slower_is_refused(tmp_path: Path) -> None:
    slow = whole_directory(tmp_path / "out", marker="config.json")
    (slow.__enter__() / "config.json").write_text("slow")
    write(tmp_path / "out", "fast")
    with pytest.raises(CheckpointError, match="already there and not empty"):
        slow.__exit__(None, None, None)
    assert (tmp_path / "out" / "config.json").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_where_two_names_cannot_be_exchanged_a_directory_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exchanges: bool
) -> None:
    tried = []

    def exchange(one: Path, other: Path) -> bool:
        tried.append(other)
        return exchanges and exchange_names(one, other)

    exchange_names = directories.exchange
    monkeypatch.setattr(directories, "exchange", exchange)
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new", overwrite=True)
    assert tried == [tmp_path / "out"]
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_change_places_on_linux(tmp_path: Path) -> None:
    write(tmp_path / "a", "a")
    write(tmp_path / "b", "b")
    assert directories.exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "config.json").read_text() for name in "ab"] == ["b", "a"]
    assert not directories.exchange(tmp_path / "a", tmp_path / "nothing")


def test_a_directory_that_failed_leaves_no_parents_that_were_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        fail_to_write(tmp_path / "some" / "where" / "out")
    assert list(tmp_path.iterdir()) == []


def test_room_that_killed_processes_took_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remains = leave_behind(tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 if remains.exists() else 10))
    check_room(tmp_path / "out", 1, marker="config.json")
    assert remains.exists()
    check_room(tmp_path / "out", 10, marker="config.json")
    assert not remains.exists()
    with pytest.raises(CheckpointError, match=r"but the disk has 0\.00 GB left; make room, or choose another place"):
        check_room(tmp_path / "out", 11, marker="config.json")
