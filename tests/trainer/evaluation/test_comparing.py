# SPDX-License-Identifier: Apache-2.0
"""Answers are compared as the metrics say: edits, common words, the rules of the VQA challenge."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.comparing import (
    COMPARE,
    FIGURES,
    as_written,
    character_errors,
    exact_match,
    fault_of,
    plain,
    rouge_l,
    vqa_match,
    word_errors,
)
from trainer.evaluation.task_config import METRICS, MetricName, TaskKind
from trainer.evaluation.vqa import plain_by_vqa, vqa_accuracy


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  CAT. ", "the cat"), ("don\u2019t, won't!", "dont wont"), ("3.14, 1,000", "3.14 1,000"),
        ("at 2:50", "at 2:50"), ("well-known", "well known"), ("STRASSE Straße", "strasse strasse"), ("?!", ""),
        ("ＡＢ", "ab"), ("1. x", "1 x"), ("5$ + 3", "5$ + 3"),
    ],
)  # fmt: skip
def test_plain_texts(text: str, expected: str) -> None:
    assert plain(text) == expected
    assert plain(expected) == expected


def test_as_written_only_spaces_are_made_alike() -> None:
    assert exact_match("The  cat\n", ["The cat"], as_written) == 1
    assert exact_match("the cat", ["The cat"], as_written) == 0
    assert exact_match("the cat", ["The cat!"], plain) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two dogs.", "2 dogs"), ("dont know", "don't know"), ("100,978", "100978"), ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"), ("3.5 metres", "3.5 metres"), ("black/white", "black white"), ("None", "0"),
        ("a red, an old one", "red old 1"), ("U.S.", "us"), ("yes .", "yes"),
    ],
)  # fmt: skip
def test_answers_of_the_vqa_challenge_are_made_alike(text: str, expected: str) -> None:
    assert plain_by_vqa(text) == expected
    assert plain_by_vqa(expected) == expected


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_of_ten_people_four_are_enough(agreeing: int, expected: float) -> None:
    given_answers = ["a cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert vqa_accuracy("Cat", given_answers) == pytest.approx(expected)


def test_any_accepted_answer_matches() -> None:
    assert vqa_match("the Cat.", ["dog", "cat"], as_written) == 1
    assert vqa_match("cats", ["dog", "cat"], as_written) == 0


def test_accepted_answers_that_say_nothing_are_told() -> None:
    assert fault_of(MetricName.wer, ["a", "?"], plain) is not None
    assert fault_of(MetricName.wer, ["a", "?"], as_written) is None
    assert fault_of(MetricName.rouge_l, ["?"], as_written) is not None
    assert fault_of(MetricName.vqa_match, ["?"], plain) is None
    told = fault_of(MetricName.vqa_accuracy, ["a"] * 3, plain)
    assert told is not None
    assert told.startswith("found 3 answers; expected those of at least 4 people")


def test_every_metric_of_generation_compares_and_is_a_figure() -> None:
    assert set(METRICS[TaskKind.generation]) == set(COMPARE) == set(FIGURES)
    for name, metric in FIGURES.items():
        found = COMPARE[name]("a cat", ["a cat"] * 4, plain)
        assert metric.of([{name.value: found}]) == (0.0 if not metric.higher_is_better else 1.0)
