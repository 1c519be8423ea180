# SPDX-License-Identifier: Apache-2.0
"""Questions with choices, of which the model is to hold the right one the likeliest; ``question`` says what rows are.

Each choice is a row of its own: the prompt, and behind it what is scored, without what would end a turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from model.errors import ConfigError, InputError
from model.processor.chat import AUDIO_MARKS, IMAGE_MARKS, Message, Rendered, Role
from model.processor.processor import Processor
from model.processor.tokenizer import END_OF_TURN
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from trainer.data.faults import Fault, raise_faults
from trainer.data.formats.known import check_columns, in_their_words
from trainer.data.supervise import TokenRow
from trainer.evaluation.calibration import bins_of_one, calibration_error
from trainer.evaluation.engine import Engine
from trainer.evaluation.metric import Metric, Values, ratio, share
from trainer.evaluation.question import FIELDS, QUESTION, question_of
from trainer.evaluation.task import batches_of, digests_of, fingerprint_of, modalities_of, told_apart
from trainer.evaluation.task_config import PLACE, MetricName, TaskConfig
from trainer.evaluation.task_rows import RawRow, conversation_of, longest_row, raw_rows


def log_likelihoods(values: Values) -> np.ndarray:
    """Of the choices, in nats."""
    return np.array(values["log_likelihoods"], dtype=np.float64)


def is_right(values: Values) -> float:
    """Whether the answer is the likeliest choice; of several alike the first counts, as in lm-evaluation-harness."""
    return float(int(log_likelihoods(values).argmax()) == values["answer"])


def is_right_per_byte(values: Values) -> float:
    """The same of log-likelihoods over lengths: a long choice is not unlikely for its length alone.

    Source: lm-evaluation-harness, which calls it acc_bytes; its acc_norm divides by characters, the same for ASCII.
    Both count the choice alone, without what stands between it and the prompt.
    """
    scaled = log_likelihoods(values) / np.array(values["lengths_bytes"])
    return float(int(scaled.argmax()) == values["answer"])


def probabilities(values: Values) -> np.ndarray:
    """Of the choices, as if there were no other answers."""
    powers = np.exp(log_likelihoods(values) - log_likelihoods(values).max())
    return powers / powers.sum()


def surprise(values: Values) -> float:
    """Minus the log of the answer's probability among the choices."""
    of_choices = log_likelihoods(values)
    top = of_choices.max()
    return float(top + math.log(np.exp(of_choices - top).sum()) - of_choices[values["answer"]])


def bins(values: Values) -> list[list[float]]:
    """The bin of the likeliest choice."""
    return bins_of_one(float(probabilities(values).max()), right=bool(is_right(values)))


FIGURES: Mapping[MetricName, Metric] = MappingProxyType({
    MetricName.accuracy: share("accuracy", "share of questions", is_right),
    MetricName.accuracy_normalised: share("accuracy_normalised", "share of questions", is_right_per_byte),
    MetricName.loss: Metric(
        name="loss", unit="nats per question", higher_is_better=False,
        parts=lambda values: (surprise(values), 1.0), finish=ratio,
    ),
    MetricName.ece: calibration_error("ece", "gap of probability, by questions", bins),
})  # fmt: skip


@dataclass(frozen=True, eq=False)
class Item:
    """A question as rows, one for each choice.

    ``lengths_bytes`` are those of the choices in UTF-8; ``answer`` is the place of the right one.
    """

    where: str
    rows: tuple[TokenRow, ...]
    lengths_bytes: tuple[int, ...]
    answer: int


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceTask:
    """Questions, each choice scored by log-likelihood; see ``task.Task`` for what it has."""

    name: str
    metrics: tuple[Metric, ...]
    fingerprint: str
    digests: tuple[str, ...]
    modalities: frozenset[Modality]
    items: tuple[str, ...]
    batches: tuple[range, ...]
    questions: Sequence[Item]

    def measure(self, engine: Engine, specs: Sequence[SliceSpec], batch: range) -> list[list[Values]]:
        """The log-likelihood of each choice."""
        asked = [self.questions[index] for index in batch]
        found: list[list[Values]] = []
        for scores in engine.score([row for item in asked for row in item.rows], specs):
            coming = iter(scores)
            found.append([
                {
                    "log_likelihoods": [-next(coming).loss_sum for _ in item.rows],
                    "lengths_bytes": list(item.lengths_bytes),
                    "answer": item.answer,
                }
                for item in asked
            ])  # fmt: skip
        return found


def multiple_choice_task(config: TaskConfig, processor: Processor, metrics: Sequence[MetricName]) -> MultipleChoiceTask:
    """The task of a config of this kind.

    Raises:
        MatsliceError: Files or rows cannot be used, or there are none.
    """
    check_columns_of(config)
    given = raw_rows(config)
    faults: list[Fault] = []
    questions: list[Item] = []
    for row in given:
        found = item_of(row, config, processor)
        if isinstance(found, Fault):
            faults.append(found)
        else:
            questions.append(found)
    raise_faults(faults, total=len(given))
    questions.sort(key=lambda item: max(len(row.ids) for row in item.rows))  # so that little is padding
    rows = [row for item in questions for row in item.rows]
    settings = {
        "kind": config.kind.value,
        "answers": [item.answer for item in questions],
        "lengths_bytes": [item.lengths_bytes for item in questions],
    }
    digests = digests_of(item.rows for item in questions)
    return MultipleChoiceTask(
        name=config.name,
        metrics=tuple(FIGURES[metric] for metric in metrics),
        fingerprint=fingerprint_of(settings, digests),
        digests=digests,
        modalities=modalities_of(rows),
        items=told_apart([item.where for item in questions]),
        batches=batches_of([len(item.rows) for item in questions], config.batch_size),
        questions=questions,
    )


def check_columns_of(config: TaskConfig) -> None:
    """Raise ConfigError where a column is named for what is no field of a row."""
    if config.multiple_choice.choices:
        check_columns(config.columns, config.format, "columns")
        return
    fields = [*FIELDS, *(name for name in PLACE.findall(config.multiple_choice.template) if name not in FIELDS)]
    if wrong := next((name for name in config.columns if name not in fields), None):
        raise ConfigError(f"columns: '{wrong}' is no field of a question; they have {', '.join(fields)}")


def item_of(row: RawRow, config: TaskConfig, processor: Processor) -> Item | Fault:
    """The question of a row as rows of tokens, or what is wrong with it."""
    make = conversation_item if config.multiple_choice.choices else question_item
    try:
        return make(row, config, processor)
    except InputError as error:
        return Fault(row.where, in_their_words(str(error), config.columns))


def conversation_item(row: RawRow, config: TaskConfig, processor: Processor) -> Item:
    """A conversation whose last turn is one of the choices of all rows.

    Raises:
        InputError: Something is wrong with a field, as ``field: found …; expected …``.
    """
    example = conversation_of(row, config.format)
    choices = [choice.strip() for choice in config.multiple_choice.choices]
    *before, last = example.messages
    if last.role is not Role.assistant or last.text.strip() not in choices:
        raise InputError(
            f"{example.field}: found {last.text.strip()[:40]!r} by {last.role} at the end; expected the assistant's"
            f" answer, one of {', '.join(map(repr, choices))} (multiple_choice.choices)"
        )
    with about(example.field):
        rows = [turn_row(before, choice, row.where, processor) for choice in choices]
        return checked(rows, choices, choices.index(last.text.strip()), config, processor)


def question_item(row: RawRow, config: TaskConfig, processor: Processor) -> Item:
    """A question that has its own choices; raises as ``conversation_item``."""
    asked = config.multiple_choice
    question = question_of(row, asked)
    image, audio = processor.image_marks or IMAGE_MARKS, processor.audio_marks or AUDIO_MARKS
    prompt = question.prompt
    # Where the prompt has no places for its media they stand before it.
    for marks, media in ((audio, question.recordings), (image, question.pictures)):
        if marks.placeholder not in prompt:
            prompt = marks.placeholder * len(media) + prompt
    with about(QUESTION):
        if asked.chat:
            turns = processor.place_media([Message(Role.user, prompt)], question.pictures, question.recordings)
            rows = [turn_row(turns, choice, row.where, processor) for choice in question.scored]
        else:
            rows = []
            for behind in (asked.delimiter + choice for choice in question.scored):
                rendered = processor.render_text(prompt + behind, question.pictures, question.recordings)
                end = len(rendered.text)
                rows.append(scored_row(rendered, end - len(behind), end, row.where, processor))
        return checked(rows, question.scored, question.answer, config, processor)


@contextmanager
def about(field: str) -> Iterator[None]:
    """Let an error say which field it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{field}: {error}") from None


def checked(
    rows: Sequence[TokenRow], scored: Sequence[str], answer: int, config: TaskConfig, processor: Processor
) -> Item:
    """The item, its media looked at; InputError where one cannot be used, or a row is too long."""
    for picture in rows[0].pictures:  # each row has the same
        picture.check()
    longest, most = max(len(row.ids) for row in rows), longest_row(config, processor)
    if longest > most:
        raise InputError(f"found {longest} tokens with a choice; expected at most {most} (max_length_tokens)")
    return Item(rows[0].where, tuple(rows), tuple(len(text.encode()) for text in scored), answer)


def turn_row(before: Sequence[Message], choice: str, where: str, processor: Processor) -> TokenRow:
    """A conversation and one choice as the assistant's next words, of which the choice is scored."""
    rendered = processor.render([*before, Message(Role.assistant, choice)])
    start, end = rendered.assistant[-1]
    return scored_row(rendered, start, end - len(END_OF_TURN), where, processor)


def scored_row(rendered: Rendered, start: int, end: int, where: str, processor: Processor) -> TokenRow:
    """The tokens up to ``end``, of which those are scored that hold a character from ``start`` on.

    A token that reaches over the border is scored with the choice, as lm-evaluation-harness does: nothing of a choice
    is left out, and none is without a token.
    """
    encoded = processor.tokenizer.encode_spans(rendered.text)
    inside = [place for place, (first, _) in enumerate(encoded.offsets) if first < end]
    ids = torch.tensor(encoded.ids[: inside[-1] + 1], dtype=torch.int64)
    supervised = torch.tensor([last > start for _, last in encoded.offsets[: inside[-1] + 1]])
    return TokenRow(ids, supervised, where, rendered.pictures, rendered.recordings)
