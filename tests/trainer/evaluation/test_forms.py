# SPDX-License-Identifier: Apache-2.0
"""Of what texts are made to: what means the same is the same, and what does not is not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from trainer.evaluation.forms import as_written, plain, spoken, words_of
from trainer.evaluation.vqa import plain_by_vqa


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  CAT. ", "the cat"), ("don\u2019t, won't!", "dont wont"), ("at 2:50", "at 2:50"),
        ("well-known", "well known"), ("COVID-19", "covid 19"), ("STRASSE Straße", "strasse strasse"), ("?!", ""),
        ("\uff21\uff22", "ab"), ("1. x", "1 x"), ("5$ + 3", "5$ + 3"), ("- 5 apples", "5 apples"),
        ("# Paris", "paris"), ("**Paris**", "paris"), ("wait...5", "wait 5"), ("It is 5.", "it is 5"),
        ("3.14, 1,000", "3.14 1000"), ("1,000,000.5", "1000000.5"), ("1,2,3", "1,2,3"), ("0,125", "0,125"),
        ("1990\u20131995", "1990-1995"), ("\u22125", "-5"), ("50 %", "50%"), ("10\u00b2", "10^2"),
        ("10\u207b\u00b2", "10^-2"), ("1\u00bd", "1 1/2"), ("CO\u2082", "co2"), ("-$5", "-$5"), ("(-.5)", "-.5"),
        ("5'10", "5'10"), ("x = -1", "x = -1"),
    ],
)  # fmt: skip
def test_plain_texts(text: str, expected: str) -> None:
    assert plain(text) == expected
    assert plain(expected) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"), ("\u22125", "5"), ("x = -1", "x = 1"), ("C#", "C"), ("C++", "C"), ("50%", "50"), (".5", "5"),
        ("-.5", ".5"), ("1/2", "1 2"), ("1/2", "1:2"), ("10-5", "10+5"), ("10\u00b2", "102"), ("1\u00bd", "11/2"),
        ("5'10", "510"), ("#1", "1"), ("2.5", "25"), ("1,5", "15"), ("3*4", "3 4"), ("$-5", "$5"), ("1,2,3", "123"),
    ],
)  # fmt: skip
def test_what_means_something_else_stays_something_else(one: str, other: str) -> None:
    assert plain(one) != plain(other)


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=-(10**12), max_value=10**12))
def test_a_number_is_itself_however_it_is_grouped(number: int) -> None:
    assert plain(f"{number:,}") == plain(str(number)) == str(number)
    assert plain(f"It is {number:,}.") == f"it is {number}"
    assert plain(f"({number:,}.25)".replace("-", "\u2212")) == f"{number}.25"


PIECES = st.lists(st.sampled_from([*"aZ9é ß.,!?'-+$%#()[]<>\n", "don't", "(laughs)", "50%", "\u2019", "\u3000", "ﬁ"]))


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_transcripts_are_as_whisper_makes_them(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert spoken(text) == BasicTextNormalizer()(text).strip()


def test_vowel_signs_stay_in_the_words_of_transcripts() -> None:
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"
    assert spoken(f"{hindi}, {hindi}!") == f"{hindi} {hindi}"
    assert BasicTextNormalizer()(hindi).split() != [hindi]  # which is why this one differs


def test_words_are_letters_digits_and_their_marks() -> None:
    hindi, persian = "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert words_of(f"{hindi}\u0964 {persian}") == [hindi, persian]
    assert words_of("Cafe\u0301, a_b 3.5") == ["caf\u00e9", "a", "b", "3", "5"]


def test_as_written_an_accent_is_one_however_it_is_stored() -> None:
    assert as_written(" Cafe\u0301 \n!") == "Caf\u00e9 !"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two dogs.", "2 dogs"), ("dont know", "don't know"), ("100,978", "100978"), ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"), ("3.5 metres", "3.5 metres"), ("black/white", "black white"), ("None", "0"),
        ("a red, an old one", "red old 1"), ("U.S.", "us"), ("yes .", "yes"), ("5 oclock", "5 o'clock"),
        ("it\u2019s", "it's"), ("couldnt've", "couldn't've"), (".5", ".5"), ("50%", "50%"), ("$5", "$5"), ("c#", "c#"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"), ("1,000 t-shirts", "1000 tshirts"), (" wood , old", "wood old"),
        ("\u201cYes\u201d", "yes"), ("A", "a"), ("The.", "the"), ("?", "?"), ("", ""),
    ],
)  # fmt: skip
def test_answers_of_the_vqa_challenge_are_made_alike(text: str, expected: str) -> None:
    assert plain_by_vqa(text) == expected
    assert plain_by_vqa(expected) == expected
