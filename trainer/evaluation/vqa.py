# SPDX-License-Identifier: Apache-2.0
"""Answers as the VQA challenge compares them: short ones, by rules that forgive spelling, and by how many gave them.

Source: https://visualqa.org/evaluation.html, whose rules are followed here as written there; the challenge's own
program also leaves answers as they are where all people gave the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST_AGREEING = 3  # people; if as many gave an answer it counts in full
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = ("a", "an", "the")
# Those that are no other word without their apostrophe.
CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how's i'm i've isn't
it'd it'll let's ma'am mightn't might've mustn't must've needn't oughtn't shan't she's should've shouldn't that'd
that'll that's there'd there's they'd they'll they're they've wasn't we've weren't what'll what're what's what've
when's where'd where's where've who'd who'll who's who've why'll why's won't would've wouldn't y'all you'd you'll
you're you've
"""
BARE = {word.replace("'", ""): word for word in CONTRACTIONS.split()}
COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")  # but of a decimal
PUNCTUATION = re.compile(r"[^\w\s':.]|_")  # apostrophes and colons stay; what is left of periods are decimals


def plain_by_vqa(text: str) -> str:
    """The answer in lower case, its periods, articles and punctuation gone, its numbers in digits."""
    text = PERIOD.sub("", COMMA_IN_NUMBER.sub("", text.lower().replace("\u2019", "'")))
    words = (DIGITS.get(word, word) for word in PUNCTUATION.sub(" ", text).split())
    return " ".join(BARE.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """How far those asked agree with an answer: in full if three others of them gave it.

    The mean over all that are left when one of them is, of min(how many gave it / 3, 1).

    Args:
        answer: The model's.
        given: Each person's, of whom there are more than three.
    """
    said = plain_by_vqa(answer)
    agree = [plain_by_vqa(one) == said for one in given]
    return sum(min((sum(agree) - own) / MOST_AGREEING, 1.0) for own in agree) / len(agree)
