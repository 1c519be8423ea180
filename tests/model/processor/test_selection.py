# SPDX-License-Identifier: Apache-2.0
"""Tokens to keep: read from a list, or counted in texts and conversations."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from model.errors import InputError, SliceError
from model.processor import selection
from model.processor.selection import Counts, choose, ids_of_tokens, tokens_from_corpus, tokens_from_list
from model.processor.tokenizer import Tokenizer
from model.processor.trimming import Trimming
from model.slicing.vocabulary import Vocabulary
from tests.trained_tokenizer import CONFIG, TEXTS, trained_vocabulary

TEXT_SIZE = CONFIG.text.vocab_size_per_layer_input


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(trained_vocabulary(), {})


@cache
def trimming() -> Trimming:
    return Trimming(trained_vocabulary(), {})


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_list_has_a_token_a_line_plain_or_as_json(tmp_path: Path) -> None:
    content = '\ufeff▁the\n\nthe \r\n"a\\nb"\n"\n" "\n"\\u00e9"\nend'
    found = tokens_from_list(written(tmp_path / "tokens.txt", content))
    assert found == ["▁the", "the ", "a\nb", '"', " ", "é", "end"]


def test_a_line_that_is_no_json_string_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'tokens\.txt:2: found "a"b", which is no JSON string'):
        tokens_from_list(written(tmp_path / "tokens.txt", 'x\n"a"b"\n'))


def test_listed_tokens_have_the_ids_of_the_vocabulary() -> None:
    ids = ids_of_tokens(["▁the", "e", "<eos>"], trimming(), "list")
    assert [tokenizer().token(number) for number in ids] == ["▁the", "e", "<eos>"]
    with pytest.raises(InputError, match=r"list: 2 of 3 are no tokens of tokenizer\.json: ' the', 'zzzz'; .* '▁'"):
        ids_of_tokens(["e", " the", "zzzz"], trimming(), "list")


def test_a_text_is_counted_as_the_tokenizer_reads_it(tmp_path: Path) -> None:
    text = TEXTS[0] + "\n\n" + TEXTS[1]
    counts = tokens_from_corpus([written(tmp_path / "a.txt", text)], tokenizer())
    assert counts.of == Counter(tokenizer().encode(text))
    assert counts.total == len(tokenizer().encode(text))


def test_a_long_text_is_read_in_pieces_that_change_few_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "PIECE_CHARACTERS", 50)
    text = "\n\n".join(TEXTS[:20])
    path = written(tmp_path / "a.txt", text)
    pieces = [piece for piece, _ in selection.pieces_of_text(path)]
    assert "".join(pieces) == text
    assert len(pieces) > 10
    assert not any(piece[0].isspace() for piece in pieces)
    counted = tokens_from_corpus([path], tokenizer()).of
    changed = counted - Counter(tokenizer().encode(text))
    assert changed.total() <= len(pieces) // 2  # tokens that lie across two pieces


def test_the_texts_of_conversations_are_counted(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": " What? "}, {"role": "assistant", "content": "That."}]},
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?\n"}]}]},
        {"text": "Plain. "},
    ]
    path = written(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, rows)))
    expected: Counter[int] = Counter()
    for text in ("What?", "That.", "Which?", "Plain. "):
        expected.update(tokenizer().encode(text))
    assert tokens_from_corpus([path], tokenizer()).of == expected


def test_every_byte_that_is_read_is_told(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / "a.txt", "é\n" * 20_000),
        written(tmp_path / "a.jsonl", '{"text": "é"}\n' * 3),
    ]
    told: list[int] = []
    tokens_from_corpus(paths, tokenizer(), progress=told.append)
    assert sum(told) == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ab\nc\xff", r"a\.txt:2: found byte 0xff at column 2; expected UTF-8 text"),
        ("a.jsonl", b'{"text": "a"}\n{', r"a\.jsonl:2: found no JSON"),
        ("a.jsonl", b"[1]", r"a\.jsonl:1: found no conversation; expected an object with 'messages'"),
        ("a.jsonl", b'{"messages": ["a"]}', r"a\.jsonl:1: found no conversation"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', r"a\.jsonl:1: found no conversation"),
        ("a.jsonl", b'{"messages": [{"content": 3}]}', r"a\.jsonl:1: a turn's content is 3; it must be text"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        tokens_from_corpus([written(tmp_path / name, content)], tokenizer())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match=f"vocabulary: no file '{path}'"):
            tokens_from_corpus([path], tokenizer())


def test_tokens_are_ordered_by_count_and_equal_ones_by_id() -> None:
    counts = Counts(Counter({7: 2, 3: 2, 5: 9, 4: 1}))
    assert counts.ordered() == [5, 3, 7, 4]
    assert counts.ordered(min_count=2) == [5, 3, 7]
    assert counts.share(Vocabulary((0, 5, 7), 10)) == 11 / 14


def test_all_tokens_of_a_corpus_cover_it() -> None:
    counts = Counts(Counter(tokenizer().encode(TEXTS[0])))
    vocabulary = choose(counts.ordered(), tokenizer(), trimming(), CONFIG)
    assert counts.share(vocabulary) == 1
    assert len(vocabulary) < TEXT_SIZE


def test_a_limit_counts_all_that_is_kept_of_the_text() -> None:
    counts = Counts(Counter(tokenizer().encode("\n\n".join(TEXTS))))
    smallest, limit = choose([], tokenizer(), trimming(), CONFIG), 400
    some = choose(counts.ordered(), tokenizer(), trimming(), CONFIG, max_tokens=limit)
    assert len(smallest) < len(some) == limit
    assert {*smallest.kept} < {*some.kept}
    assert counts.share(smallest) < counts.share(some) < 1
    trimming().check(some)
    exact = choose(counts.ordered(), tokenizer(), trimming(), CONFIG, max_tokens=len(smallest))
    assert exact == smallest
    with pytest.raises(
        SliceError, match=rf"max_tokens is 9, but {len(smallest)} must stay: .*at least {len(smallest)}"
    ):
        choose(counts.ordered(), tokenizer(), trimming(), CONFIG, max_tokens=9)


def test_the_most_frequent_come_first_and_listed_ones_before_them() -> None:
    rare = [number for number in range(TEXT_SIZE) if len(tokenizer().token(number) or "") > 7][-5:]
    counts = Counts(Counter(tokenizer().encode("\n\n".join(TEXTS))))
    some = choose(counts.ordered(), tokenizer(), trimming(), CONFIG, always=rare, max_tokens=450)
    assert {*rare} <= {*some.kept}
    first = [number for number in counts.ordered() if number < TEXT_SIZE][:50]
    assert {*first} <= {*some.kept}
    with pytest.raises(SliceError, match="and the listed tokens; allow at least"):
        choose([], tokenizer(), trimming(), CONFIG, always=range(9, 1200), max_tokens=450)


def test_ids_of_media_count_as_nothing_to_choose() -> None:
    assert choose([TEXT_SIZE + 1], tokenizer(), trimming(), CONFIG) == choose([], tokenizer(), trimming(), CONFIG)
