# SPDX-License-Identifier: Apache-2.0
"""Media are looked at once before training, and what cannot be decoded is named with its rows."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from model.errors import InputError
from model.processor.media import Picture, Recording
from tests.trainer.parts import mixed, picture_bytes, rows, sound_bytes, tiny_media_processor
from trainer.data.config import CheckMedia
from trainer.data.inspection import inspect
from trainer.data.supervise import TokenRow

ROWS = rows(mixed(10), tiny_media_processor())
QUIET = Console(quiet=True)


def damaged_row() -> TokenRow:
    """A row whose second picture is damaged where only decoding looks."""
    content = bytearray(picture_bytes(1, side=60))
    content[300:340] = bytes(40)
    return dataclasses.replace(ROWS[2], pictures=(ROWS[2].pictures[0], Picture(bytes(content))), where="chat.jsonl:7")


def test_the_digest_of_every_medium_is_known_afterwards() -> None:
    for check in CheckMedia:
        digests = inspect(ROWS, check, console=QUIET)
        assert digests == {medium: medium.digest() for row in ROWS for medium in row.media}


def test_damage_behind_a_header_is_said_of_every_row_that_has_it() -> None:
    bad = damaged_row()
    again = dataclasses.replace(bad, where="chat.jsonl:9")
    with pytest.raises(InputError) as caught:
        inspect([*ROWS, bad, again], CheckMedia.full, console=QUIET)
    told = str(caught.value)
    assert "2 of 12 rows cannot be used" in told
    assert "chat.jsonl:7: messages: image of" in told
    assert "chat.jsonl:9: messages: image of" in told
    assert len(inspect([bad], CheckMedia.head, console=QUIET)) == 2


def test_a_file_that_went_away_is_named_whatever_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(sound_bytes(300))
    row = dataclasses.replace(ROWS[3], recordings=(Recording(tmp_path / "a.wav"),), where="chat.jsonl:3")
    (tmp_path / "a.wav").unlink()
    for check in CheckMedia:
        with pytest.raises(InputError, match=r"chat\.jsonl:3: messages: recording '.*a\.wav': no such file"):
            inspect([row], check, console=QUIET)


def test_a_medium_of_many_rows_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    digest, calls = Picture.digest, []
    monkeypatch.setattr(Picture, "digest", lambda picture: calls.append(picture) or digest(picture))
    inspect([dataclasses.replace(ROWS[1], pictures=(Picture(tmp_path / "a.png"),))] * 5, CheckMedia.full, console=QUIET)
    assert len(calls) == 1


def test_on_a_terminal_it_is_shown_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        file = io.StringIO()
        inspect(ROWS, CheckMedia.full, console=Console(file=file, force_terminal=True, width=100))
        shown[rank] = file.getvalue()
    assert "looking at 12 images and recordings" in shown["0"]
    assert not shown["1"]
