# SPDX-License-Identifier: Apache-2.0
"""What cannot be sliced, planned or verified is refused before a byte is written, by what to do about it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.checkpoint.saving import save
from recipes.cli import main
from tests.daily import daily_shares
from tests.recipes.broken_slices import SlicePlaces
from tests.recipes.wrong_slice_parts import ADAPTERS, CHECKS, PARTS, PLACES, PLANS, VOCABULARIES
from tests.recipes.wrong_slices import LAYERS, PARENTS, Words, sliced, with_adapter
from tests.tiny import tiny_model
from tests.trained_tokenizer import CONFIG, write_files

WRONG = {
    f"{kind}: {what}": request
    for kind, requests in (
        ("layers", LAYERS), ("parent", PARENTS), ("adapter", ADAPTERS), ("place", PLACES), ("part", PARTS),
        ("vocabulary", VOCABULARIES), ("plan", PLANS), ("verify", CHECKS),
    )
    for what, request in requests.items()
}  # fmt: skip


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in three files."""
    directory = tmp_path_factory.mktemp("weights") / "sharded"
    save(tiny_model(), directory, max_shard_bytes=150_000)
    return directory


@pytest.fixture(scope="session")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer is of Gemma's build."""
    directory = tmp_path_factory.mktemp("weights") / "worded"
    save(tiny_model(CONFIG), directory, extras=lambda inside: write_files(inside) and None)
    return directory


@pytest.fixture
def places(
    weights: Path, adapter: Path, chat: Path, sharded: Path, media_weights: Path, worded: Path, tmp_path: Path
) -> SlicePlaces:
    return SlicePlaces(weights, adapter, chat, tmp_path, sharded=sharded, media=media_weights, worded=worded)


@pytest.fixture
def made(places: SlicePlaces, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every directory that is made in the room, also one that is removed at once."""
    seen: list[str] = []
    mkdir = os.mkdir

    def recorded(path: Any, *more: Any, **options: Any) -> None:
        mkdir(path, *more, **options)
        seen.append(os.fspath(path))  # where there was none

    monkeypatch.chdir(places.room)
    monkeypatch.setattr(os, "mkdir", recorded)
    return seen


def contents(directory: Path) -> dict[str, bytes | None]:
    """Everything below a directory, byte for byte."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


def refused(command: Words, places: SlicePlaces, made: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a request; it must be refused with nothing done."""
    words = command(places)
    before = contents(places.room)
    made.clear()
    status = main(words)
    assert contents(places.room) == before
    assert made == []
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) == 1
    assert "Traceback" not in shown.err
    assert status == 2
    return shown.err


@pytest.mark.parametrize("what", daily_shares(WRONG, one_in=3))
def test_what_cannot_be_is_refused_before_a_byte_is_written(
    what: str, places: SlicePlaces, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, told = WRONG[what]
    assert told in refused(command, places, made, capsys)


@pytest.mark.parametrize("more", [(), ("overwrite=true",)])
def test_a_disk_without_room_is_refused(
    more: tuple[str, ...],
    places: SlicePlaces,
    made: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=300_000))
    told = refused(sliced(*more, "max_shard_bytes=9000"), places, made, capsys)
    assert "GB are to be written, but the disk has 0.00 GB left; make room, or choose another place" in told


def test_merging_needs_room_for_what_is_merged_too(
    places: SlicePlaces, made: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 1.5 * (places.weights / "model.safetensors").stat().st_size
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=room))
    told = refused(with_adapter(lambda at: at.adapter, "merge=true"), places, made, capsys)
    assert "GB left; make room" in told
    assert main(with_adapter(lambda at: at.adapter)(places)) == 0


@pytest.mark.parametrize("output", ["out", "a/b/out"])
def test_a_place_that_is_read_only_is_refused(
    output: str,
    places: SlicePlaces,
    made: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, whatever the modes say
    told = refused(sliced(f"output={places.room / output}"), places, made, capsys)
    assert "being read-only for you; choose another place" in told
