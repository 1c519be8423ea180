# SPDX-License-Identifier: Apache-2.0
"""What texts are made to before they are compared, so that only what matters tells them apart.

``plain`` is for answers that are to be the same, ``spoken`` for transcripts, ``words_of`` for words in common, and
``as_written`` for all of them where nothing is to be forgiven.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

Form = Callable[[str], str]
SAME = str.maketrans({  # signs that are drawn in several ways
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-",  # hyphens, en dash, minus
    "\u2019": "'", "\u02bc": "'",
    "\u2044": "/",  # of ½, which is made of three characters
})  # fmt: skip
RAISED = re.compile(r"(?<=\d)(?=[\u00b9\u00b2\u00b3\u2070-\u207b])")  # before the exponent of 10²
FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e\u2189])")  # before the fraction of 1½
THOUSANDS = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
BEFORE_PERCENT = re.compile(r"(?<=\d)\s+(?=[%\u2030])")
SAYS_SOMETHING = re.compile(  # of punctuation
    r"""
    (?<=\d)[.,:/*'-](?=\d)  # within a number, a time, a date, a sum
    | (?<![\w.])-(?=[$\u20ac\u00a3\u00a5]?\.?\d)  # a sign
    | (?<![\w.])\.(?=\d)  # a decimal point that nothing stands before
    | [%\u2030]
    | (?<=\w)\# | \#(?=\w)  # C#, #1, but not a heading's
    """,
    re.VERBOSE,
)
ANGLES = re.compile(r"[<\[][^>\]]*[>\]]")
ROUND = re.compile(r"\([^)]+\)")
JOINERS = "\u200c\u200d"  # they stand inside words, as in Persian and Hindi


def as_written(text: str) -> str:
    """The text with single spaces, letters and their accents as one character, and nothing else changed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def plain(text: str) -> str:
    """The text in lower case, with single spaces, and of punctuation only what says something.

    That is a sign or decimal point before a digit, what stands between two digits, per cent, and the # of C# and #1.
    All minus signs and hyphens are alike, and commas between thousands go. Apostrophes go without a trace, other
    punctuation leaves a space. Symbols as + and $ stay.
    """
    text = unicodedata.normalize("NFKC", FRACTION.sub(" ", RAISED.sub("^", text))).casefold().translate(SAME)
    text = THOUSANDS.sub(lambda number: number[0].replace(",", ""), BEFORE_PERCENT.sub("", text))
    kept = {found.start() for found in SAYS_SOMETHING.finditer(text)}
    return as_written("".join(letter if at in kept else unless_punctuation(letter) for at, letter in enumerate(text)))


def unless_punctuation(letter: str) -> str:
    """The letter, or what is left of it where it says nothing."""
    if letter == "'":
        return ""
    return " " if unicodedata.category(letter).startswith("P") else letter


def spoken(text: str) -> str:
    """A transcript in lower case, without what stands in brackets, without punctuation and symbols.

    Source: https://github.com/openai/whisper, whose BasicTextNormalizer most word error rates in many languages are
    found with; but marks as the vowels of Hindi stay in their words, which it takes apart. English is often compared
    after more than that: numbers in digits, British spelling in American.
    """
    text = unicodedata.normalize("NFKC", ROUND.sub("", ANGLES.sub("", text.lower())))
    return as_written("".join(" " if unicodedata.category(one)[0] in "PS" else one for one in text).lower())


def words_of(text: str) -> list[str]:
    """The words in lower case: what letters, digits, and their marks make without a gap."""
    text = unicodedata.normalize("NFC", text.lower())
    return "".join(letter if is_of_a_word(letter) else " " for letter in text).split()


def is_of_a_word(letter: str) -> bool:
    """Whether it is a letter, a digit, or a mark on one."""
    return letter.isalnum() or letter in JOINERS or unicodedata.category(letter).startswith("M")
