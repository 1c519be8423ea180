# SPDX-License-Identifier: Apache-2.0
"""A row that asks a question and lists what can be answered, and the text that is made of it.

    {"question": "What is the capital of France?", "choices": ["Berlin", "Paris"], "answer": 1}
    {"question": "…", "choices": {"text": ["Berlin", "Paris"], "label": ["A", "B"]}, "answer": "B", "images": ["a.png"]}

The answer is a place (the first is 0), a choice's label, or its letter where there are no labels, or its text. Choices
are told apart by their places, so some may read the same, as in a few rows of MMLU. Media stand where the prompt says
``<image_soft_token>`` and ``<audio_soft_token>``, or before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from model.errors import InputError
from model.processor.media import Picture, Recording
from trainer.data.media import faults_of_media, listed, source_of
from trainer.data.wording import fields_of, kind
from trainer.evaluation.task_config import CHOICES, PLACE, MultipleChoiceConfig, Scored
from trainer.evaluation.task_rows import RawRow

QUESTION, ANSWER = "question", "answer"
FIELDS = (QUESTION, CHOICES, ANSWER, "images", "audio")
TEXT, LABEL = "text", "label"  # of choices that are two lists


@dataclass(frozen=True)
class Question:
    """What is asked, which words of each choice are scored, and the place of the right one."""

    prompt: str
    scored: tuple[str, ...]
    answer: int
    pictures: tuple[Picture, ...] = ()
    recordings: tuple[Recording, ...] = ()


def question_of(row: RawRow, asked: MultipleChoiceConfig) -> Question:
    """The question of a row.

    Raises:
        InputError: Something is wrong with a field, as ``field: found …; expected …``.
    """
    if wrong := next(faults_of_media(row.fields), None):
        raise InputError(wrong)
    texts, labels = choices_of(row.fields)
    answer = answer_of(row.fields, texts, labels)
    letters = tuple(ascii_uppercase[: len(texts)])
    if asked.scored is Scored.letter and len(letters) < len(texts):
        raise InputError(f"{CHOICES}: found {len(texts)}; expected at most {len(letters)}, for each has a letter")
    listing = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=False))
    prompt = PLACE.sub(lambda place: listing if place[1] == CHOICES else text_of(row.fields, place[1]), asked.template)
    return Question(
        prompt, letters if asked.scored is Scored.letter else texts, answer,
        tuple(Picture(source_of(one, row.directory)) for one in listed(row.fields.get("images"))),
        tuple(Recording(source_of(one, row.directory)) for one in listed(row.fields.get("audio"))),
    )  # fmt: skip


def text_of(row: Mapping[str, Any], field: str) -> str:
    """What a field puts into the prompt."""
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found = kind(value) if field in row else fields_of(row)
        raise InputError(f"{field}: found {found}; expected text, the prompt has it")
    text = str(value).strip()
    if not text:
        raise InputError(f"{field}: found no text; expected some, the prompt has it")
    return text


def choices_of(row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of the choices, and their labels if they have any."""
    if CHOICES not in row:
        raise InputError(f"{CHOICES}: found {fields_of(row)}; expected a list of texts")
    given, labels = row[CHOICES], ()
    where = CHOICES
    if isinstance(given, dict):
        where = f"{CHOICES}.{TEXT}"
        labels = strings(given.get(LABEL, []), f"{CHOICES}.{LABEL}")
        given = given.get(TEXT)
    texts = strings(given, where)
    if len(texts) < 2:
        raise InputError(f"{where}: found {len(texts)} of them; expected at least two")
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise InputError(f"{CHOICES}.{LABEL}[{index}]: found {label!r} again; expected labels that differ")
    if labels and len(labels) != len(texts):
        raise InputError(f"{CHOICES}.{LABEL}: found {len(labels)} of them; expected one for each of {len(texts)} texts")
    return texts, labels


def strings(value: Any, where: str) -> tuple[str, ...]:
    """A list of texts that say something, without space around them."""
    if not isinstance(value, list):
        raise InputError(f"{where}: found {kind(value)}; expected a list of texts")
    for index, one in enumerate(value):
        if not isinstance(one, str):
            raise InputError(f"{where}[{index}]: found {kind(one)}; expected a text")
        if not one.strip():
            raise InputError(f"{where}[{index}]: found no text; expected some")
    return tuple(one.strip() for one in value)


def answer_of(row: Mapping[str, Any], texts: Sequence[str], labels: Sequence[str]) -> int:
    """The place of the right choice.

    What is a label is meant as one, whatever the texts are. A text that two choices have means the first of them, as in
    lm-evaluation-harness: both are as likely, and of choices as likely the first is taken to be the model's.
    """
    names = labels or tuple(ascii_uppercase[: len(texts)])
    expected = f"a place from 0 to {len(texts) - 1}, {', '.join(names)}, or the text of a choice"
    answer = row.get(ANSWER)
    if answer is None:
        raise InputError(f"{ANSWER}: found {'null' if ANSWER in row else fields_of(row)}; expected {expected}")
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(texts):
            raise InputError(f"{ANSWER}: found {answer}; expected {expected}")
        return answer
    if not isinstance(answer, str):
        raise InputError(f"{ANSWER}: found {kind(answer)}; expected {expected}")
    answer = answer.strip()
    if answer in labels:
        return labels.index(answer)
    meant = {among.index(answer) for among in (names, texts) if answer in among}
    if len(meant) > 1:  # only of letters that nobody gave
        raise InputError(
            f"{ANSWER}: found {answer!r}, the text of one choice and the letter of another; expected a place, or"
            f" {CHOICES} with '{LABEL}' beside '{TEXT}'"
        )
    if not meant:
        raise InputError(f"{ANSWER}: found {answer!r}; expected {expected}")
    return meant.pop()
