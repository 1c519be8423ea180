# SPDX-License-Identifier: Apache-2.0
"""Answers as the VQA challenge compares them: short ones, by rules that forgive spelling, and by how many gave them.

Source: https://visualqa.org/evaluation.html and its program, https://github.com/GT-Vision-Lab/VQA. Other than there

- an answer that the rules leave nothing of, as "the" or "?", stays as it is, so that silence is never right;
- answers are made alike where all people gave the same, too. The program then compares them letter by letter, so that
  what a model writes as "Yes." may not be "yes" there;
- quotation marks, hyphens and minus signs beyond ASCII are as those of ASCII.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from trainer.evaluation.forms import SAME

MOST_AGREEING = 3  # people; if as many gave an answer it counts in full
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = ("a", "an", "the")
# Those that are no other word without their apostrophes.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't shan't she'd've she's should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
BARE = {word.replace("'", ""): word for word in CONTRACTIONS.split()}
COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
PERIOD = re.compile(r"\.(?!\d)")  # but of a decimal, as .5
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # what the program takes: 5%, $5 and C# stay
SIGNS = SAME | str.maketrans("\u201c\u201d", '""')


def plain_by_vqa(text: str) -> str:
    """The answer in lower case, its periods, articles and punctuation gone, its numbers in digits."""
    text = unicodedata.normalize("NFC", text).lower().translate(SIGNS)
    words = [DIGITS.get(word, word) for word in PERIOD.sub("", without_punctuation(" ".join(text.split()))).split()]
    said = [word for word in words if word not in ARTICLES] or words or text.split()
    return " ".join(BARE.get(word.replace("'", ""), word) for word in said)


def without_punctuation(text: str) -> str:
    """The text with a space for each mark; nothing for one that stands beside a space, or in a text with 1,000."""
    left = text
    for mark in PUNCTUATION:
        is_apart = f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if is_apart or COMMA_IN_NUMBER.search(text) else " ")
    return left


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
