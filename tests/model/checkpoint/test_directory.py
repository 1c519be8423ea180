# SPDX-License-Identifier: Apache-2.0
"""Directories appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.directory import whole_directory
from model.errors import CheckpointError


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
    (tmp_path / "out" / "stale").write_text("stale")
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


def test_a_file_is_no_place_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file"):
        write(tmp_path / "out", "new")
