# SPDX-License-Identifier: Apache-2.0
"""Answers are compared as the metrics say: edits, common words, the rules of the VQA challenge."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from trainer.evaluation.comparing import (
    COMPARE,
    FIGURES,
    character_errors,
    exact_match,
    fault_of,
    form_of,
    rouge_l,
    vqa_match,
    word_errors,
)
from trainer.evaluation.forms import as_written, plain, spoken
from trainer.evaluation.task_config import METRICS, MetricName, TaskKind
from trainer.evaluation.vqa import vqa_accuracy


def edits(left: list[str], right: list[str]) -> int:
    """The distance of Levenshtein, by its definition."""
    row = list(range(len(right) + 1))
    for number, one in enumerate(left, start=1):
        before, row = row, [number]
        for place, other in enumerate(right):
            row.append(min(before[place] + (one != other), before[place + 1] + 1, row[place] + 1))
    return row[-1]


def common(left: list[str], right: list[str]) -> int:
    """The length of the longest common subsequence, by its definition."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, j in itertools.product(range(len(left)), range(len(right))):
        table[i + 1][j + 1] = table[i][j] + 1 if left[i] == right[j] else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


WORDS = st.lists(st.sampled_from(["a", "bc", "ä", "und", "so"]), max_size=6)
SOME_WORDS = WORDS.filter(bool)
ASCII = st.characters(max_codepoint=127)


@settings(max_examples=60, deadline=None)
@given(answer=WORDS, accepted=SOME_WORDS)
def test_errors_are_the_edits_to_get_there(answer: list[str], accepted: list[str]) -> None:
    said, wanted = " ".join(answer), " ".join(accepted)
    assert word_errors(said, [wanted], as_written) == [edits(accepted, answer), len(accepted)]
    assert character_errors(said, [wanted], as_written) == [edits(list(wanted), list(said)), len(wanted)]


@settings(max_examples=60, deadline=None)
@given(answer=WORDS, accepted=SOME_WORDS)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(answer: list[str], accepted: list[str]) -> None:
    shared = common(accepted, answer)
    expected = 2 * shared / (len(answer) + len(accepted))
    assert rouge_l(" ".join(answer), [" ".join(accepted)], as_written) == pytest.approx(expected)


def test_of_several_answers_the_nearest_counts() -> None:
    assert word_errors("a b", ["x y z", "a c", "a b c d"], as_written) == [1, 2]
    assert rouge_l("a b", ["x", "a b"], as_written) == 1.0
    assert exact_match("b", ["a", "b"], as_written) == 1


def test_errors_of_all_items_are_over_the_words_of_all_items() -> None:
    items = [{"wer": [1, 1]}, {"wer": [0, 9]}, {"wer": [4, 2]}]
    assert FIGURES[MetricName.wer].of(items) == 5 / 12
    assert not FIGURES[MetricName.wer].higher_is_better
    assert FIGURES[MetricName.exact_match].of([{"exact_match": 1}, {"exact_match": 0}]) == 0.5


@settings(max_examples=60, deadline=None)
@given(answer=st.text(ASCII, max_size=30), accepted=st.text(ASCII, max_size=30).filter(lambda text: text.isalnum()))
def test_rouge_l_of_ascii_is_the_librarys_without_stems(answer: str, accepted: str) -> None:
    usual = RougeScorer(["rougeL"]).score(accepted, answer)["rougeL"].fmeasure
    assert rouge_l(answer, [accepted], as_written) == pytest.approx(usual)


def test_accents_and_vowel_signs_stay_in_their_words() -> None:
    composed, decomposed = "caf\u00e9 noir", "cafe\u0301 noir"
    assert rouge_l(decomposed, [composed], as_written) == 1.0
    assert word_errors(decomposed, [composed], as_written) == [0, 2]
    assert vqa_match(decomposed, [composed], as_written) == 1
    hindi, other = "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093e\u0928\u093e\u0926\u093e"  # the same consonants
    assert rouge_l(other, [hindi], as_written) == 0.0
    assert rouge_l(hindi, [hindi], as_written) == 1.0
    assert vqa_match(other, [hindi], as_written) == 0


def test_normalised_each_metric_has_its_own_form() -> None:
    forms = {name: form_of(name, normalise=True) for name in METRICS[TaskKind.generation]}
    assert {name for name, form in forms.items() if form is plain} == {MetricName.exact_match}
    assert {name for name, form in forms.items() if form is spoken} == {MetricName.wer, MetricName.cer}
    assert all(form_of(name, normalise=False) is as_written for name in forms)


def test_as_written_only_spaces_are_made_alike() -> None:
    assert exact_match("The  cat\n", ["The cat"], as_written) == 1
    assert exact_match("the cat", ["The cat"], as_written) == 0
    assert exact_match("the cat", ["The cat!"], plain) == 1


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_of_ten_people_four_are_enough(agreeing: int, expected: float) -> None:
    given_answers = ["a cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert vqa_accuracy("Cat", given_answers) == pytest.approx(expected)


def test_any_accepted_answer_matches() -> None:
    assert vqa_match("the Cat.", ["dog", "cat"], as_written) == 1
    assert vqa_match("cats", ["dog", "cat"], as_written) == 0


@pytest.mark.parametrize("accepted", ["A", "an", "the.", "?", "\u2026"])
@pytest.mark.parametrize("silence", ["", " ", "\n"])
def test_silence_is_never_right(accepted: str, silence: str) -> None:
    """The rules take articles and punctuation out, and of these answers nothing would be left."""
    assert vqa_match(silence, [accepted, "cat"], as_written) == 0
    assert vqa_accuracy(silence, [accepted] * 10) == 0
    assert vqa_match(accepted, [accepted, "cat"], as_written) == 1
    assert vqa_match("of", [accepted], as_written) == 0


def test_accepted_answers_that_say_nothing_are_told() -> None:
    assert fault_of(MetricName.exact_match, ["a", "?"], plain) is not None
    assert fault_of(MetricName.exact_match, ["-5", "%"], plain) is None
    assert fault_of(MetricName.wer, ["a", "(music)"], spoken) is not None
    assert fault_of(MetricName.wer, ["a", "?"], as_written) is None
    assert fault_of(MetricName.rouge_l, ["?"], as_written) is not None
    assert fault_of(MetricName.vqa_match, ["?"], as_written) is None  # it stays as it is
    told = fault_of(MetricName.vqa_accuracy, ["a"] * 3, plain)
    assert told is not None
    assert told.startswith("found 3 answers; expected those of at least 4 people")


def test_every_metric_of_generation_compares_and_is_a_figure() -> None:
    assert set(METRICS[TaskKind.generation]) == set(COMPARE) == set(FIGURES)
    for name, metric in FIGURES.items():
        found = COMPARE[name]("a cat", ["a cat"] * 4, form_of(name, normalise=True))
        assert metric.of([{name.value: found}]) == (0.0 if not metric.higher_is_better else 1.0)
