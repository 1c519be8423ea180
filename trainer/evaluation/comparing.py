# SPDX-License-Identifier: Apache-2.0
"""An answer beside the accepted ones: the same words, so many edits apart, so much in common.

Word and character errors are counted by jiwer, ROUGE-L by rouge-score; both are imported where they are needed. Of
several accepted answers the one that fits best counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from trainer.evaluation.forms import Form, as_written, plain, spoken, words_of
from trainer.evaluation.metric import Metric, ratio, share
from trainer.evaluation.task_config import MetricName
from trainer.evaluation.vqa import MOST_AGREEING, plain_by_vqa, vqa_accuracy

NORMALISED: Mapping[MetricName, Form] = MappingProxyType({
    MetricName.exact_match: plain,
    MetricName.wer: spoken,
    MetricName.cer: spoken,
})  # fmt: skip


def form_of(metric: MetricName, *, normalise: bool) -> Form:
    """What a metric makes of texts before it compares them; those that have rules of their own go by these."""
    return NORMALISED.get(metric, as_written) if normalise else as_written


def exact_match(answer: str, accepted: Sequence[str], form: Form) -> int:
    """Whether it is one of them."""
    return int(form(answer) in map(form, accepted))


def vqa_match(answer: str, accepted: Sequence[str], form: Form) -> int:  # noqa: ARG001 (it has rules of its own)
    """Whether it is one of them by the rules of the VQA challenge."""
    return int(plain_by_vqa(answer) in map(plain_by_vqa, accepted))


def vqa_share(answer: str, accepted: Sequence[str], form: Form) -> float:  # noqa: ARG001 (as above)
    """How many of those asked gave it, by the rules of the VQA challenge."""
    return vqa_accuracy(answer, accepted)


def word_errors(answer: str, accepted: Sequence[str], form: Form) -> list[int]:
    """Words to change, take out or put in to get the nearest of them, and how many it has.

    The rate is the sum of the first over the sum of the second, not a mean over answers.
    """
    import jiwer

    return least([jiwer.process_words(form(one), form(answer)) for one in accepted])


def character_errors(answer: str, accepted: Sequence[str], form: Form) -> list[int]:
    """Characters likewise, spaces among them."""
    import jiwer

    return least([jiwer.process_characters(form(one), form(answer)) for one in accepted])


def least(found: Sequence[Any]) -> list[int]:
    """Edits and length of the accepted answer that takes the fewest edits for its length."""
    counts = [
        [one.substitutions + one.deletions + one.insertions, one.hits + one.substitutions + one.deletions]
        for one in found
    ]
    return min(counts, key=lambda count: (count[0] / count[1], count[0]))


def rouge_l(answer: str, accepted: Sequence[str], form: Form) -> float:  # noqa: ARG001 (words alone are compared)
    """F1 of the longest common subsequence of words, in lower case.

    Source: rouge-score, the whole answer as one sentence (its rougeL, not rougeLsum) and words as they are: figures of
    papers with stems of words (use_stemmer) are a little higher.
    """
    return float(rouge_scorer().score_multi(list(accepted), answer)["rougeL"].fmeasure)


class Words:
    """What rouge-score asks for words: its own way of finding them drops all letters that are not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return words_of(text)


@cache
def rouge_scorer() -> Any:
    """The library's counter."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())


def share_of_answers(name: MetricName, unit: str = "share of answers") -> Metric:
    """The mean of what is found of each item under the metric's name."""
    return share(name.value, unit, lambda values: float(values[name.value]))


def errors_per(name: MetricName, unit: str) -> Metric:
    """Edits of all items over lengths of all items; above 1 where more is said than was to be."""
    return Metric(
        name=name.value, unit=f"errors per {unit}", higher_is_better=False,
        parts=lambda values: (float(values[name.value][0]), float(values[name.value][1])), finish=ratio,
    )  # fmt: skip


FIGURES: Mapping[MetricName, Metric] = MappingProxyType({
    MetricName.exact_match: share_of_answers(MetricName.exact_match),
    MetricName.vqa_match: share_of_answers(MetricName.vqa_match),
    MetricName.vqa_accuracy: share_of_answers(MetricName.vqa_accuracy, "mean share of agreement"),
    MetricName.wer: errors_per(MetricName.wer, "word"),
    MetricName.cer: errors_per(MetricName.cer, "character"),
    MetricName.rouge_l: share_of_answers(MetricName.rouge_l, "mean F1 of common words"),
})  # fmt: skip
COMPARE: Mapping[MetricName, Callable[[str, Sequence[str], Form], Any]] = MappingProxyType({
    MetricName.exact_match: exact_match,
    MetricName.vqa_match: vqa_match,
    MetricName.vqa_accuracy: vqa_share,
    MetricName.wer: word_errors,
    MetricName.cer: character_errors,
    MetricName.rouge_l: rouge_l,
})  # fmt: skip


def fault_of(metric: MetricName, accepted: Sequence[str], form: Form) -> str | None:
    """What is wrong with accepted answers, if a metric can do nothing with them."""
    if metric is MetricName.vqa_accuracy and len(accepted) <= MOST_AGREEING:
        return (
            f"found {len(accepted)} answers; expected those of at least {MOST_AGREEING + 1} people for {metric},"
            f" equal ones included ({MetricName.vqa_match} takes any number)"
        )
    for text in accepted:
        if not (words_of(text) if metric is MetricName.rouge_l else form(text)):
            return f"found no word in {text[:40]!r}; expected some, {metric} compares them (generation.normalise)"
    return None
