# SPDX-License-Identifier: Apache-2.0
"""Rows on disk: the same as made anew, under a name that changes with all they depend on, and never damaged ones."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import ConfigError
from model.processor.chat import Message, Role
from model.processor.media import Picture
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from tests.trainer.parts import (
    CHARACTERS,
    SPECIAL,
    character_tokenizer,
    picture_bytes,
    spelling,
    tiny_media_processor,
    tiny_processor,
)
from trainer.data import token_cache
from trainer.data.config import LongRows, OnBadRow, SuperviseConfig, Turns
from trainer.data.example import Example
from trainer.data.faults import Fault
from trainer.data.lengths import lengths_of
from trainer.data.supervise import TokenRow, TokenRows, tokenize
from trainer.data.token_cache import KeptRows, SourceRows, TokenCache, about_rows, code_version, digest_of_code

ABOUT = {"of": "a test"}
TEXT = Example((Message(Role.user, "a text " * 9),), "text.txt:1", is_text=True)
TWO_TURNS = Example(
    tuple(
        Message(role, text) for role, text in zip((Role.user, Role.assistant) * 2, ("hi", "ho", "a", "bc"), strict=True)
    ),
    "vögel/🦩.jsonl:7",
)
BAD = Fault("x:3", "messages: found none; expected a list of turns")


@pytest.fixture
def said() -> list[str]:
    """What the cache tells."""
    return []


@pytest.fixture
def kept(tmp_path: Path, said: list[str]) -> TokenCache:
    return TokenCache(tmp_path / "new" / "cache", said.append)


def made(**changes: Any) -> SourceRows:
    """Rows of conversations, a text, and one that cannot be used, made anew, as those of two sources."""
    limits: dict[str, Any] = {"max_length_tokens": 40, "long_rows": LongRows.skip, "on_bad_row": OnBadRow.skip}
    found = tokenize([*spelling(9), TWO_TURNS, BAD, TEXT], tiny_processor(), **limits | changes)
    digests = [row.where.encode().ljust(32)[:32] for row in found.rows]
    return SourceRows(found, [range(3), range(3, len(found.rows))], digests)


def whole(found: TokenRows) -> SourceRows:
    return SourceRows(found, [range(len(found.rows))])


def described() -> dict[str, str]:
    return ABOUT


def never() -> SourceRows:
    raise AssertionError("rows are made although they are kept")


def assert_same(kept: SourceRows, fresh: SourceRows) -> None:
    """Every row equal in every field, and everything told of those that are not among them."""
    assert list(kept.places) == list(fresh.places)
    assert list(kept.digests) == list(fresh.digests)
    found, expected = kept.found, fresh.found
    assert len(found.rows) == len(expected.rows)
    for one, other in zip(found.rows, expected.rows, strict=True):
        for known in dataclasses.fields(TokenRow):
            ours, theirs = getattr(one, known.name), getattr(other, known.name)
            if isinstance(theirs, torch.Tensor):
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs), known.name
            else:
                assert ours == theirs, known.name
    for known in dataclasses.fields(TokenRows):
        if known.name not in ("rows", "examples"):
            assert getattr(found, known.name) == getattr(expected, known.name), known.name


@pytest.mark.parametrize(
    ("long_rows", "length", "roles", "turns"),
    list(
        product(
            (LongRows.skip, LongRows.truncate), (24, 40, 200), ([Role.assistant], [Role.user, Role.assistant]), Turns
        )
    ),
)
def test_rows_that_were_kept_are_those_made_anew(
    kept: TokenCache, long_rows: LongRows, length: int, roles: list[Role], turns: Turns
) -> None:
    supervise = SuperviseConfig(roles=roles, turns=turns)
    fresh = made(max_length_tokens=length, long_rows=long_rows, supervise=supervise)
    assert fresh.found.num_bad == 1
    assert_same(kept.rows(described, lambda: fresh), fresh)
    opened = kept.rows(described, never)
    assert isinstance(opened.found.rows, KeptRows)
    assert_same(opened, fresh)


def test_rows_are_a_sequence_that_reads_when_asked(kept: TokenCache) -> None:
    fresh = made()
    rows = kept.rows(described, lambda: fresh).found.rows
    assert isinstance(rows, KeptRows)
    base: Any = rows.arrays["ids"]
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    places = [row.where for row in fresh.found.rows]
    assert [row.where for row in rows] == places
    assert [row.where for row in reversed(rows)] == places[::-1]
    for part in (slice(None, 4), slice(2, None, 3), slice(None, None, -1), slice(5, 2)):
        assert [row.where for row in rows[part]] == places[part]
        assert lengths_of(rows[part]).tolist() == [len(row.ids) for row in fresh.found.rows[part]]
    assert rows[-1].where == places[-1]
    with pytest.raises(IndexError):
        rows[len(rows)]
    rows[0].ids[0] = 99  # a row is its reader's own
    assert rows[0].ids[0] != 99
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: rows[i % len(rows)], range(400)))
    assert all(torch.equal(row.ids, fresh.found.rows[i % len(rows)].ids) for i, row in enumerate(read))


def test_rows_with_media_are_not_kept_and_it_is_said(kept: TokenCache, said: list[str]) -> None:
    seen = Example(
        (Message(Role.user, ("see ", Picture(picture_bytes(1)))), Message(Role.assistant, "a")), "here:1"
    )  # fmt: skip
    examples = [*spelling(2), seen]
    fresh = whole(tokenize(examples, tiny_media_processor(), max_length_tokens=400, long_rows=LongRows.refuse))
    assert kept.rows(described, lambda: fresh) is fresh
    assert list(kept.directory.iterdir()) == []
    (told,) = said
    assert told == (
        "data.token_cache: 1 of 3 rows have images or sound; only sets of text alone are kept, and this one is"
        " tokenised in every run"
    )


def test_data_that_changes_while_it_is_read_is_not_kept(kept: TokenCache, said: list[str]) -> None:
    versions = iter(({"version": 1}, {"version": 2}))
    fresh = made()
    assert kept.rows(lambda: next(versions), lambda: fresh) is fresh
    assert list(kept.directory.iterdir()) == []
    assert said == ["data.token_cache: the data changed while it was read; its rows are not kept"]


def damages(content: bytes) -> Iterator[bytes]:
    """The content cut short anywhere, and with any bit of some of its bytes turned."""
    yield from (content[:length] for length in range(0, len(content), 31))
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        yield bytes(changed)
    yield content + b"\0"


def test_how_much_is_kept_is_told_whenever_it_gets_more(kept: TokenCache, said: list[str]) -> None:
    kept.rows(described, made)
    kept.rows(described, never)
    kept.rows(lambda: ABOUT | {"number": 2}, made)
    assert [line.partition(" of ")[0] for line in said] == [
        f"data.token_cache: 11 rows kept; '{kept.directory}' has {sets}" for sets in ("1 set", "2 sets")
    ]


def test_damaged_files_are_never_used(kept: TokenCache, said: list[str]) -> None:
    few = tokenize(spelling(3), tiny_processor(), max_length_tokens=99, long_rows=LongRows.refuse)
    kept.rows(described, lambda: whole(few))
    said.clear()
    path = kept.path(ABOUT)
    for number, damaged in enumerate(damages(path.read_bytes()), start=1):
        path.write_bytes(damaged)
        assert kept.read(path) is None
        assert len(said) == number
    assert set(said) == {f"data.token_cache: '{path}' is damaged (its checksum is another); its rows are made anew"}
    fresh = made()
    assert_same(kept.rows(described, lambda: fresh), fresh)
    assert_same(kept.rows(described, never), fresh)


def test_a_file_that_cannot_be_written_leaves_nothing(kept: TokenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"data.token_cache: '.*' cannot be written \(No space left on device\); mak"):
        kept.rows(described, made)
    assert list(kept.directory.iterdir()) == []

    def interrupted(*_: object) -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    monkeypatch.undo()
    monkeypatch.setattr(token_cache, "parts_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept.rows(described, made)
    assert list(kept.directory.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data.token_cache: '.*file' is no directory that can be written to"):
        TokenCache(tmp_path / "file", print)


def test_several_may_keep_the_same_rows_at_once(kept: TokenCache) -> None:
    fresh = made()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: kept.rows(described, made), range(24)):
            assert_same(found, fresh)
    assert [path.name for path in kept.directory.iterdir()] == [kept.path(ABOUT).name]


PROGRAM = """
import sys
import time
from pathlib import Path
from tests.trainer.data.test_token_cache import ABOUT, made
from trainer.data.token_cache import TokenCache

Path(sys.argv[1], f"ready{sys.argv[2]}").touch()
while len(list(Path(sys.argv[1]).glob("ready*"))) < 3:
    time.sleep(0.01)
for number in range(12):
    cache = TokenCache(Path(sys.argv[1], "cache"), print)
    found = cache.rows(lambda: {**ABOUT, "number": number}, made).found
    assert len(found.rows) == len(made().found.rows)
"""


@pytest.mark.slow
def test_several_processes_may_start_at_once(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), str(number)], cwd=root, stdout=subprocess.PIPE)
        for number in range(3)
    ]
    assert not any(b"damaged" in process.communicate(timeout=120)[0] for process in started)
    assert [process.returncode for process in started] == [0] * 3
    assert len(list((tmp_path / "cache").iterdir())) == 12


def other_tokenizer() -> Tokenizer:
    return character_tokenizer([*SPECIAL, *reversed(CHARACTERS)], SPECIAL)


SETTINGS: dict[str, Any] = {"max_length_tokens": 40, "long_rows": "skip", "columns": {}}
DATA = [[("a.jsonl", "00"), ("b.jsonl", "01")], [("c.jsonl", "00")]]


def about(
    data: Sequence[Sequence[tuple[str, str]]] = DATA, processor: Callable[[], Processor] = tiny_processor, *,
    code: str | None = None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    return about_rows(data, processor(), SETTINGS | settings, code=code)


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "as it was": about,
    "other bytes": lambda: about([[("a.jsonl", "02"), DATA[0][1]], DATA[1]]),
    "another name, which is in the rows' places": lambda: about([[("d.jsonl", "00"), DATA[0][1]], DATA[1]]),
    "another order": lambda: about([DATA[0][::-1], DATA[1]]),
    "other sources of the same files": lambda: about([DATA[0][:1], [DATA[0][1], *DATA[1]]]),
    "a file less": lambda: about([DATA[0]]),
    "the tokenizer": lambda: about(processor=lambda: Processor(other_tokenizer(), None, None, tiny_processor().config)),
    "media, whose marks are refused in texts": lambda: about(processor=tiny_media_processor),
    "the length": lambda: about(max_length_tokens=41),
    "long rows": lambda: about(long_rows="truncate"),
    "columns": lambda: about(columns={"prompt": "question"}),
    "a setting there was none of": lambda: about(new=None),
    "the code": lambda: about(code="another"),
}


def test_everything_that_rows_depend_on_gives_them_another_name(kept: TokenCache) -> None:
    names = {what: kept.path(change()) for what, change in OTHERS.items()}
    assert len(set(names.values())) == len(OTHERS)
    assert {what: kept.path(change()) for what, change in OTHERS.items()} == names


def test_another_chat_template_gives_another_name(kept: TokenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept.path(about())
    monkeypatch.setattr(token_cache, "CHAT_TEMPLATE", "{{ bos_token }}")
    assert kept.path(about()) != before


def test_any_change_of_code_or_packages_gives_another_name(tmp_path: Path) -> None:
    (tmp_path / "formats").mkdir()
    first, within = tmp_path / "first.py", tmp_path / "formats" / "within.py"
    seen = set()

    def changed() -> None:
        seen.add(digest_of_code("tokenizers 1", [tmp_path]))

    first.write_text("a = 1\n", encoding="utf-8")
    changed()
    first.write_text("a = 2\n", encoding="utf-8")
    changed()
    within.write_text("", encoding="utf-8")
    changed()
    within.rename(tmp_path / "formats" / "other.py")
    changed()
    assert len(seen) == 4
    assert digest_of_code("tokenizers 2", [tmp_path]) not in seen
    (tmp_path / "notes.txt").touch()
    assert digest_of_code("tokenizers 1", [tmp_path]) in seen
    assert code_version() == code_version()


def test_a_file_says_what_it_is_of(kept: TokenCache) -> None:
    kept.rows(lambda: about(code="this"), made)
    content = kept.path(about(code="this")).read_bytes()
    start = token_cache.DIGEST_BYTES + token_cache.LENGTH_BYTES
    length = int.from_bytes(content[token_cache.DIGEST_BYTES : start], "little")
    assert json.loads(content[start : start + length])["about"] == about(code="this")
