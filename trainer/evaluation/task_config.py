# SPDX-License-Identifier: Apache-2.0
"""What a user says about a task: which rows, what is asked of them, and which figures are made of it."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from enum import StrEnum

from model.errors import ConfigError
from trainer.data.config import RowFormat

CHOICES = "choices"  # field of a question
PLACE = re.compile(r"\{(\w+)\}")  # in a prompt, of a field
TASK_NAME = re.compile(r"\w[\w.-]*")  # it names files


class TaskKind(StrEnum):
    """What is asked of the rows."""

    held_out = "held_out"  # how well it says what the assistant says in them
    multiple_choice = "multiple_choice"  # which of several answers it holds the likeliest
    generation = "generation"  # what it answers, compared with what was to be answered


class MetricName(StrEnum):
    """A figure; ``METRICS`` says which kind has which."""

    loss = "loss"
    perplexity = "perplexity"
    accuracy = "accuracy"  # whole answers right, or questions
    token_accuracy = "token_accuracy"
    accuracy_normalised = "accuracy_normalised"  # of choices by log-likelihood per byte
    ece = "ece"  # expected calibration error
    agreement = "agreement"  # with the parent, token by token
    kl = "kl"  # from the parent
    exact_match = "exact_match"
    vqa_match = "vqa_match"  # any accepted answer, compared by the rules of the VQA challenge
    vqa_accuracy = "vqa_accuracy"  # the same, by how many of those asked said so
    wer = "wer"
    cer = "cer"
    rouge_l = "rouge_l"


BESIDE_PARENT = (MetricName.agreement, MetricName.kl)  # these need a reference
METRICS = {  # the first is the main one where nothing is said
    TaskKind.held_out: (
        MetricName.loss, MetricName.perplexity, MetricName.accuracy, MetricName.token_accuracy, MetricName.ece,
        *BESIDE_PARENT,
    ),
    TaskKind.multiple_choice: (
        MetricName.accuracy, MetricName.accuracy_normalised, MetricName.loss, MetricName.ece,
    ),
    TaskKind.generation: (
        MetricName.exact_match, MetricName.vqa_match, MetricName.vqa_accuracy, MetricName.wer, MetricName.cer,
        MetricName.rouge_l,
    ),
}  # fmt: skip
USUAL_OF_GENERATION = (MetricName.exact_match,)  # the others are for some data, or need a library
LIBRARIES = {  # of a metric: the module it needs, and the name that it is installed by
    MetricName.wer: ("jiwer", "jiwer"),
    MetricName.cer: ("jiwer", "jiwer"),
    MetricName.rouge_l: ("rouge_score", "rouge-score"),
}


class Scored(StrEnum):
    """Which words of a choice are scored."""

    text = "text"  # its own, behind the prompt
    letter = "letter"  # A, B, C, …; the prompt lists the choices, as {choices}


@dataclass(kw_only=True, slots=True)
class MultipleChoiceConfig:
    """How a question is put.

    Raises:
        ConfigError: Values contradict each other.
    """

    choices: list[str] = field(default_factory=list)  # of every row, a conversation whose last turn is one; []: its own
    prompt: str = ""  # "" is {question}; any field of a row can stand so, and {choices} is their list by letters
    scored: Scored = Scored.text  # of a choice: its text, or the letter that the prompt lists it by
    chat: bool = True  # the prompt as the user's turn and the choice as the assistant's; false: one text goes on
    delimiter: str = " "  # between prompt and choice where chat is false

    def __post_init__(self) -> None:
        if not self.choices:
            self.check_prompt()
            return
        if len(self.choices) < 2 or len({choice.strip() for choice in self.choices} - {""}) < len(self.choices):
            raise ConfigError(
                f"task: multiple_choice.choices is {self.choices}; give at least two texts that differ, or none for"
                " rows that have their own"
            )
        if self.prompt or self.scored is not Scored.text or not self.chat:
            raise ConfigError(
                "task: multiple_choice.choices are of conversations, which are their own prompts; leave prompt, scored"
                " and chat as they are, or choices out"
            )

    def check_prompt(self) -> None:
        """Raise ConfigError where the prompt would be the same for all questions, or letters stand for nothing."""
        fields = PLACE.findall(self.template)
        if not set(fields) - {CHOICES}:
            raise ConfigError(
                f"task: multiple_choice.prompt is {self.prompt!r}, the same for all questions; put a field of the row"
                " into it, as {question}"
            )
        if self.scored is Scored.letter and CHOICES not in fields:
            raise ConfigError(
                f"task: multiple_choice.prompt is {self.prompt!r}, but with scored={self.scored} it must list the"
                " choices: put {choices} into it"
            )

    @property
    def template(self) -> str:
        """The prompt that is meant."""
        if self.prompt:
            return self.prompt
        return "{question}" if self.scored is Scored.text else "{question}\n{choices}\nAnswer:"


@dataclass(kw_only=True, slots=True)
class GenerationTaskConfig:
    """How answers are made and compared.

    Raises:
        ConfigError: A value is out of its range.
    """

    max_new_tokens: int = 64
    normalise: bool = True  # forgive letter case and punctuation (forms.plain, forms.spoken); VQA has its own rules

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"task: generation.max_new_tokens is {self.max_new_tokens}; it must be at least 1")


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """One task.

    Raises:
        ConfigError: A value is out of its range, or a metric is none of the kind's or needs what is not installed.
    """

    name: str  # what results call it
    kind: TaskKind  # held_out, multiple_choice or generation
    files: list[str]  # files of rows (jsonl, json, parquet, csv, tsv, arrow, txt), directories, hub names
    format: RowFormat = RowFormat.auto  # of conversations; auto tells it from their fields
    columns: dict[str, str] = field(default_factory=dict)  # our field: its column, as {question: stem}
    metrics: list[MetricName] = field(default_factory=list)  # the main one first; empty takes the kind's usual ones
    max_items: int | None = None  # as many at most; null = all
    seed: int | None = None  # draws these; null takes the first
    max_length_tokens: int = 2048
    batch_size: int = 8  # conversations, or choices
    multiple_choice: MultipleChoiceConfig = field(default_factory=MultipleChoiceConfig)
    generation: GenerationTaskConfig = field(default_factory=GenerationTaskConfig)

    def __post_init__(self) -> None:
        if not TASK_NAME.fullmatch(self.name):
            raise ConfigError(f"task: name is '{self.name}'; it names files: give letters, digits, '_', '-' and '.'")
        if not self.files:
            raise ConfigError(f"{self.label}: files is empty; name at least one file, directory or data set of the hub")
        for key, least in {"max_items": 1, "batch_size": 1, "max_length_tokens": 2}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"{self.label}: {key} is {value}; it must be at least {least}")
        if self.seed is not None and self.max_items is None:
            raise ConfigError(f"{self.label}: seed is {self.seed}, but it draws max_items; give both, or none")
        are_questions = self.kind is TaskKind.multiple_choice and not self.multiple_choice.choices
        if are_questions and self.format is not RowFormat.auto:
            raise ConfigError(
                f"{self.label}: format is {self.format}, but rows of kind={self.kind} have question, choices and"
                " answer; leave it out, and say with columns what these are called; or give multiple_choice.choices"
            )
        self.check_metrics()

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"task '{self.name}'"

    def check_metrics(self) -> None:
        """Raise ConfigError for a metric that the kind has not, that is there twice, or that lacks its library."""
        allowed = METRICS[self.kind]
        for metric in self.metrics:
            if metric not in allowed:
                raise ConfigError(
                    f"{self.label}: metrics has {metric}, which kind={self.kind} has not; it has {', '.join(allowed)}"
                )
            if self.metrics.count(metric) > 1:
                raise ConfigError(f"{self.label}: metrics has {metric} twice; name it once")
            module, package = LIBRARIES.get(metric, ("", ""))
            if module and importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"{self.label}: metrics has {metric}, but {package} is not installed; install it"
                    f" (pip install {package}, or 'matslice[eval]' for all that tasks can need), or leave {metric} out"
                )

    def chosen_metrics(self, *, has_reference: bool) -> tuple[MetricName, ...]:
        """The metrics that are meant.

        Raises:
            ConfigError: One is a comparison with a parent, and there is none to compare with.
        """
        if not self.metrics:
            usual = USUAL_OF_GENERATION if self.kind is TaskKind.generation else METRICS[self.kind]
            return tuple(metric for metric in usual if has_reference or metric not in BESIDE_PARENT)
        lonely = [metric for metric in self.metrics if metric in BESIDE_PARENT and not has_reference]
        if lonely:
            raise ConfigError(
                f"{self.label}: metrics has {lonely[0]}, a comparison with the parent, and there is no reference;"
                f" name the parent's sub-model as the reference, or leave {lonely[0]} out"
            )
        return tuple(self.metrics)
