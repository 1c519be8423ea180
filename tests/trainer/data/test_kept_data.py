# SPDX-License-Identifier: Apache-2.0
"""``data.token_cache``: whatever is said of data, a run that finds rows kept has those of one that makes them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import InputError
from model.processor.chat import Role
from tests.trainer.parts import picture_bytes, tiny_media_processor, tiny_processor
from trainer.data import dataset
from trainer.data.config import DataConfig, LongRows, OnBadRow, OnPreference, RowFormat, SourceConfig, SuperviseConfig
from trainer.data.config import Turns as AllOrLast
from trainer.data.dataset import read_rows
from trainer.data.lengths import lengths_of
from trainer.data.supervise import TokenRow, TokenRows
from trainer.data.token_cache import SUFFIX

WORDS = ("abc", "hello", "you and me", "z" * 30, "a", "b b b", "last")


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several formats, one with a row that cannot be used."""
    write(tmp_path / "chat.jsonl", [messages("say", word, "again", word[:2]) for word in WORDS])
    write(tmp_path / "bad.jsonl", [messages("a", "b"), {"messages": []}, messages("c", "d")])
    write(tmp_path / "pairs.jsonl", [{"prompt": word, "chosen": "yes", "rejected": "no"} for word in WORDS])
    write(tmp_path / "asked.jsonl", [{"question": word, "answer": word[::-1]} for word in WORDS])
    (tmp_path / "text.txt").write_text("a long text, " * 30, encoding="utf-8")
    return tmp_path


def config(folder: Path, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "train": [str(folder / "chat.jsonl")], "max_length_tokens": 60, "long_rows": LongRows.truncate,
    }  # fmt: skip
    return DataConfig(**values | changes)


COLUMNS = {"prompt": "question", "completion": "answer"}
CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nothing": lambda _: {},
    "length": lambda _: {"max_length_tokens": 61},
    "left out": lambda _: {"long_rows": LongRows.skip},
    "last turn": lambda _: {"supervise": SuperviseConfig(turns=AllOrLast.last)},
    "roles": lambda _: {"supervise": SuperviseConfig(roles=[Role.user])},
    "format": lambda _: {"format": RowFormat.messages},
    "bad rows": lambda folder: {"train": [str(folder / "bad.jsonl")], "on_bad_row": OnBadRow.skip},
    "nothing refused": lambda _: {"on_bad_row": OnBadRow.skip},
    "pairs": lambda folder: {"train": [str(folder / "pairs.jsonl")], "preference": OnPreference.chosen},
    "columns": lambda folder: {"train": [str(folder / "asked.jsonl")], "columns": COLUMNS},
    "text": lambda folder: {"train": [str(folder / "text.txt")]},
    "two": lambda folder: {"train": [str(folder / "chat.jsonl"), str(folder / "text.txt")]},
    "two in another order": lambda folder: {"train": [str(folder / "text.txt"), str(folder / "chat.jsonl")]},
    "held out": lambda _: {"held_out": 2.0},
}
SAME_ENTRY: dict[str, Callable[[Path], dict[str, Any]]] = {  # what becomes of rows once they are made
    "more held out": lambda _: {"held_out": 3.0},
    "weights": lambda folder: {
        "train": [], "sources": {"one": SourceConfig(path=str(folder / "chat.jsonl"), weight=2.5)},
    },
    "order": lambda _: {"shuffle": False},
    "measured, the same file": lambda folder: {
        "validation": [str(folder / "chat.jsonl")], "max_validation_examples": 2,
    },
}  # fmt: skip


def assert_rows_equal(found: TokenRows | None, expected: TokenRows | None) -> None:
    if expected is None or found is None:
        assert found is expected
        return
    assert len(found.rows) == len(expected.rows)
    for one, other in zip(found.rows, expected.rows, strict=True):
        for known in dataclasses.fields(TokenRow):
            ours, theirs = getattr(one, known.name), getattr(other, known.name)
            assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs, known.name
    assert lengths_of(found.rows).tolist() == [len(row.ids) for row in expected.rows]
    for known in dataclasses.fields(TokenRows):
        if known.name not in ("rows", "examples"):
            assert getattr(found, known.name) == getattr(expected, known.name), known.name


def nothing_made(*_: object) -> None:
    raise AssertionError("rows are made although they are kept")


@pytest.mark.parametrize("change", [*CHANGES, *SAME_ENTRY])
def test_kept_or_not_the_rows_are_the_same(folder: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = (CHANGES | SAME_ENTRY)[change](folder)
    fresh = read_rows(config(folder, **changes), tiny_processor(), seed=3)
    keeping = config(folder, token_cache=folder / "cache", **changes)
    for _ in range(2):
        for found, expected in zip(read_rows(keeping, tiny_processor(), seed=3), fresh, strict=True):
            assert_rows_equal(found, expected)
        monkeypatch.setattr(dataset, "made_rows", nothing_made)


def test_every_setting_that_makes_other_rows_has_an_entry_of_its_own(folder: Path) -> None:
    def entries() -> int:
        return len(list((folder / "cache").glob(f"*{SUFFIX}")))

    for number, change in enumerate(CHANGES, start=1):
        read_rows(config(folder, token_cache=folder / "cache", **CHANGES[change](folder)), tiny_processor(), seed=3)
        assert entries() == number, change
    for change in SAME_ENTRY.values():
        read_rows(config(folder, token_cache=folder / "cache", **change(folder)), tiny_processor(), seed=3)
    assert entries() == len(CHANGES)


def test_a_changed_file_is_read_again(folder: Path) -> None:
    keeping = config(folder, token_cache=folder / "cache")
    read_rows(keeping, tiny_processor(), seed=3)
    path = folder / "chat.jsonl"
    path.write_bytes(path.read_bytes().replace(b"hello", b"hallo"))
    assert_rows_equal(
        read_rows(keeping, tiny_processor(), seed=3)[0], read_rows(config(folder), tiny_processor(), seed=3)[0]
    )


def test_what_is_refused_is_refused_every_time(folder: Path) -> None:
    keeping = config(folder, token_cache=folder / "cache", train=[str(folder / "bad.jsonl")])
    for _ in range(2):
        with pytest.raises(InputError, match="1 of 3 rows cannot be used"):
            read_rows(keeping, tiny_processor(), seed=3)
    assert list((folder / "cache").iterdir()) == []


def test_a_damaged_entry_is_told_and_made_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keeping = config(folder, token_cache=folder / "cache")
    fresh, _ = read_rows(keeping, tiny_processor(), seed=3)
    (path,) = (folder / "cache").iterdir()
    whole = path.read_bytes()
    path.unlink()  # what is mapped stays as it was
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found, _ = read_rows(keeping, tiny_processor(), seed=3)
    assert_rows_equal(found, fresh)
    assert path.read_bytes() == whole
    assert "is damaged (its checksum is another); its rows are made anew" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["for its file", "for its length"])
def test_nothing_is_kept_of_a_set_that_lost_rows_with_media(tmp_path: Path, lost: str) -> None:
    # What such a row is depends on a file that no hash of the data knows, though no row that is left has media.
    shown = messages("what? <image_soft_token>", "b") | {"images": ["p.png"]}
    path = write(tmp_path / "a.jsonl", [messages("a", "b"), shown])
    if lost == "for its length":
        (tmp_path / "p.png").write_bytes(picture_bytes(1))
    length = 20 if lost == "for its length" else 100
    data = DataConfig(
        train=[str(path)], token_cache=tmp_path / "cache", max_length_tokens=length, long_rows=LongRows.skip,
        on_bad_row=OnBadRow.skip,
    )  # fmt: skip
    before, _ = read_rows(data, tiny_media_processor(), seed=0)
    assert len(before.rows) == 1
    assert not list((tmp_path / "cache").glob(f"*{SUFFIX}"))
    (tmp_path / "p.png").write_bytes(picture_bytes(1))
    after, _ = read_rows(dataclasses.replace(data, max_length_tokens=100), tiny_media_processor(), seed=0)
    assert len(after.rows) == 2
