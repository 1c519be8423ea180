# SPDX-License-Identifier: Apache-2.0
"""Texts become the tokens that lm-evaluation-harness gives a model of transformers; nothing is scored twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError, InputError
from tests.trained_tokenizer import TEXTS
from tests.trainer.harness.parts import tokenizer
from trainer.harness.encoding import Encoding

BOS = 2


def encoding(max_length: int = 64, *, add_bos: bool | None = None) -> Encoding:
    return Encoding(tokenizer=tokenizer(), max_length=max_length, add_bos=add_bos)


@pytest.mark.parametrize("used", [encoding(), encoding(add_bos=True)], ids=["by file", "asked"])
def test_a_text_begins_with_one_mark_whether_it_says_it_or_not(used: Encoding) -> None:
    plain = tokenizer().encode("The value")
    assert used.encode("The value") == [BOS, *plain]
    assert used.encode("<bos>The value") == [BOS, *plain]


def test_without_marks_a_text_is_its_tokens_alone() -> None:
    assert encoding(add_bos=False).encode("The value") == tokenizer().encode("The value")


@pytest.mark.parametrize("context", ["The value of x is", "The value of x is  ", "a\n"])
def test_what_is_given_and_scored_are_the_tokens_of_both_texts_together(context: str) -> None:
    split = encoding().pair(context, " returned.")
    assert [*split.given, *split.scored] == encoding().encode(context + " returned.")
    assert tokenizer().decode(split.given) == context.rstrip()


def test_space_behind_a_prompt_is_scored_with_what_follows() -> None:
    assert encoding().pair("The value ", "is") == encoding().pair("The value", " is")


def test_without_a_prompt_what_is_scored_follows_the_mark_that_begins_texts() -> None:
    assert encoding().pair("", "The value").given == (BOS,)
    assert encoding(add_bos=False).pair("", "The value").given == (BOS,)
    assert encoding().pair("", "<bos>The value") == encoding().pair("", "The value")


@given(text=st.sampled_from(TEXTS), max_length=st.integers(1, 90))
def test_every_token_of_a_text_is_scored_once_behind_what_precedes_it(text: str, max_length: int) -> None:
    ids = encoding().encode(text)
    scored: list[int] = []
    for split in encoding(max_length).windows(text):
        before = [BOS, *ids[: len(scored)]]
        assert before[-len(split.given) :] == list(split.given)
        assert len(split.given) + len(split.scored) <= max_length + 1
        scored += split.scored
    assert scored == ids


def test_the_last_part_of_a_text_is_given_as_much_as_the_model_reads() -> None:
    windows = list(encoding(20).windows(" ".join(TEXTS[:3])[:400]))
    assert len(windows) > 2
    assert {len(split.given) + len(split.scored) for split in windows[1:]} == {21}


def test_a_row_that_is_too_long_loses_its_first_tokens_and_nothing_that_is_scored() -> None:
    split = encoding().pair(TEXTS[0], " and so on")
    row = encoding(12).row(split, "here")
    assert row.ids.tolist() == [*split.given, *split.scored][-13:]
    assert row.ids[row.supervised].tolist() == list(split.scored)


def test_a_prompt_keeps_its_end_and_leaves_room_for_the_answer() -> None:
    ids = encoding().encode(TEXTS[0])
    assert encoding(30).prompt(TEXTS[0], 20) == tuple(ids[-10:])


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_length is 0; it must be at least 1"):
        encoding(0)
    with pytest.raises(InputError, match="'' adds no token to its prompt"):
        encoding().pair("The value", "")
    with pytest.raises(InputError, match="a prompt has no tokens; let texts begin with <bos>"):
        encoding(add_bos=False).pair(" ", "x")
    with pytest.raises(ConfigError, match=r"64 new tokens.*leave no room for a prompt in 64"):
        encoding(64).prompt("The value", 64)
    with pytest.raises(InputError, match=r"here: \d+ tokens are to be scored behind one prompt, but max_length is 2"):
        encoding(2).row(encoding().pair("The", TEXTS[0]), "here")
