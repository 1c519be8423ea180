# SPDX-License-Identifier: Apache-2.0
"""What tokens are built of: with it, a smaller vocabulary finds the same pieces in a text."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.errors import CheckpointError
from model.processor.derivation import Derivations
from model.processor.trimming import Trimming
from model.slicing.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
É = ("<0xC3>", "<0xA9>")  # the bytes of a character that is no token


def content_of(pieces: list[str], merges: list[tuple[str, str]], /, **model: Any) -> dict[str, Any]:
    """A tokenizer.json of these pieces, with bytes for all other characters."""
    tokens = ["<unk>", *BYTES, *pieces]
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
        "post_processor": None, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "added_tokens": [],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)}, "merges": [list(pair) for pair in merges],
        } | model,
    }  # fmt: skip


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[str, Any]:
    """Random pieces over three letters, and random ways to build them, in random order; some are never built."""
    words = draw(st.lists(st.text("abc", min_size=2, max_size=5), unique=True, min_size=1, max_size=12))
    pieces = [*"abc", *words]
    merges = [
        (word[:at], word[at:]) for word in words for at in range(1, len(word)) if {word[:at], word[at:]} <= {*pieces}
    ]
    if draw(st.booleans()):  # merges of bytes, as some converters write them, and of what they make with a letter
        made = "".join(É)
        pieces += [made, "a" + made]
        merges += [É, ("a", made)]
    kept = draw(st.permutations(merges))
    return content_of(pieces, kept[: draw(st.integers(0, len(kept)))], ignore_merges=draw(st.booleans()))


@given(content=vocabularies(), text=st.text("abcé", max_size=12), data=st.data())
@settings(max_examples=100)
@example(content_of([*"abc", "bc", "ab", "abc"], [("b", "c"), ("a", "bc"), ("a", "b")]), "abcab", None)
def test_a_text_of_kept_pieces_has_the_same_pieces_under_fewer_tokens(
    content: dict[str, Any], text: str, data: st.DataObject | None
) -> None:
    whole = tokenizers.Tokenizer.from_str(json.dumps(content))
    trimming = Trimming(json.dumps(content).encode(), {})
    before = whole.encode(text).ids
    others = data.draw(st.sets(st.sampled_from(sorted(trimming.ids.values())))) if data else set()
    kept = trimming.closed({*before, *trimming.required(), *others})
    vocabulary = Vocabulary(tuple(sorted(kept)), len(trimming.ids))
    small = tokenizers.Tokenizer.from_buffer(trimming.trimmed(vocabulary))
    assert [vocabulary.old_id(new) for new in small.encode(text).ids] == before


@given(content=vocabularies(), text=st.text("abcé🦩", max_size=12))
@settings(max_examples=30)
def test_any_text_comes_back_from_the_fewest_tokens(content: dict[str, Any], text: str) -> None:
    trimming = Trimming(json.dumps(content).encode(), {})
    vocabulary = Vocabulary(tuple(sorted(trimming.required())), len(trimming.ids))
    small = tokenizers.Tokenizer.from_buffer(trimming.trimmed(vocabulary))
    assert small.decode(small.encode(text).ids) == text


def test_a_token_is_built_of_what_comes_first_by_rank() -> None:
    content = content_of([*"abc", "ab", "bc", "abc"], [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")])
    derivations = Derivations(content, origin="here")
    ids = derivations.vocab
    assert derivations.parts(ids["abc"]) == {ids[part] for part in ("a", "b", "c", "bc")}


def test_a_token_that_no_merge_makes_is_built_of_nothing() -> None:
    derivations = Derivations(content_of([*"ab", "ab"], []), origin="here")
    assert derivations.close([derivations.vocab["ab"]]) == {derivations.vocab["ab"]}


def test_a_token_of_bytes_keeps_the_parts_of_every_merge_that_makes_it() -> None:
    made = "".join(É)
    derivations = Derivations(content_of(["a", made, "a" + made], [É, ("a", made)]), origin="here")
    ids = derivations.vocab
    assert derivations.close([ids["a" + made]]) == {ids[part] for part in ("a", made, "a" + made, *É)}


def test_where_bytes_stand_for_characters_no_character_needs_to_stay() -> None:
    derivations = Derivations(content_of([*"abc"], []), origin="here")
    assert derivations.alphabet() == {derivations.vocab[byte] for byte in BYTES}


def test_without_bytes_every_single_character_stays() -> None:
    derivations = Derivations(content_of([*"abc", "ab"], [("a", "b")], byte_fallback=False), origin="here")
    assert {derivations.vocab[letter] for letter in "abc"} <= derivations.alphabet()
    assert derivations.vocab["ab"] not in derivations.alphabet()


def test_merges_may_be_written_with_a_space_between() -> None:
    content = content_of([*"ab", "ab"], [])
    content["model"]["merges"] = ["a b"]
    assert Derivations(content, origin="here").merges == [("a", "b")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Unigram"}, "its model is Unigram; only the vocabulary of a BPE"),
        ({"type": "WordPiece"}, "its model is WordPiece"),
        ({"type": "WordLevel"}, "its model is WordLevel"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix='</w>'"),
        ({"continuing_subword_prefix": "##"}, "continuing_subword_prefix='##'"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"merges": [["a", "z"]]}, "a merge has 'z', which is no token"),
        ({"merges": ["a b c"]}, "'a b c' is no merge"),
        ({"merges": [["a", "b", "c"]]}, "is no merge"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Derivations(content_of([*"ab"], [], **change), origin="here")


def test_a_file_without_a_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="its model is none that is named"):
        Derivations({"version": "1.0"}, origin="here")
