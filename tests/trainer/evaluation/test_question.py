# SPDX-License-Identifier: Apache-2.0
"""Questions as public data have them: equal choices, and labels that are texts of other choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_model
from tests.trainer.evaluation.asked import engine, measured, task_of
from trainer.evaluation.multiple_choice import is_right
from trainer.evaluation.question import answer_of, choices_of, question_of
from trainer.evaluation.task_config import MultipleChoiceConfig, Scored, TaskKind
from trainer.evaluation.task_rows import RawRow

BOTH_UP, NO_CHANGE, ONE_UP = "Increase\u00a0 Increase", "No change\u00a0 No change", "Increase\u00a0 No change"
REPEATED = {  # in the shape of a row of MMLU's test split, whose last choice reads as its first
    "question": "A stronger market is likely to cause which changes? CONSUMPTION\u00a0 DEMAND",
    "subject": "high_school_macroeconomics",
    "choices": [BOTH_UP, NO_CHANGE, ONE_UP, BOTH_UP],
    "answer": 3,
}


def place(choices: Any, answer: Any) -> int:
    row = {"question": "q", "choices": choices, "answer": answer}
    return answer_of(row, *choices_of(row))


def test_equal_choices_are_told_apart_by_their_places() -> None:
    asked = MultipleChoiceConfig(scored=Scored.letter)
    question = question_of(RawRow(REPEATED, "rows:1", Path()), asked)
    assert question.answer == 3
    assert question.scored == ("A", "B", "C", "D")
    assert f"\nA. {BOTH_UP}\n" in question.prompt
    assert f"\nD. {BOTH_UP}\n" in question.prompt


def test_equal_choices_are_as_likely_and_the_first_is_taken(tmp_path: Path) -> None:
    rows = [{"question": "q", "choices": ["b c", "a", "b c"], "answer": answer} for answer in (0, 2, "b c")]
    task = task_of(tmp_path, TaskKind.multiple_choice, rows)
    (values,) = measured(task, engine(model=tiny_model()))
    for found in values:
        assert found["log_likelihoods"][0] == found["log_likelihoods"][2]
        # Say the model likes them best: of places only the first is right, which is what the text stands for.
        liked = {**found, "log_likelihoods": [-1.0, -9.0, -1.0]}
        assert is_right(liked) == (found["answer"] == 0)
    assert [found["answer"] for found in values] == [0, 2, 0]


@pytest.mark.parametrize(
    ("texts", "labels", "answer", "expected"),
    [
        (["B", "A", "O", "AB"], ["A", "B", "C", "D"], "A", 0),  # of blood groups
        (["B", "A", "O", "AB"], ["A", "B", "C", "D"], "D", 3),
        (["B", "A", "O", "AB"], ["A", "B", "C", "D"], "AB", 3),  # no label, so a text
        (["4", "3", "2", "1"], ["1", "2", "3", "4"], "4", 3),
        (["4", "3", "2", "1"], ["1", "2", "3", "4"], 2, 2),  # a number is a place
        (["x", "y", "x"], ["A", "B", "C"], "C", 2),
        (["x", "y", "x"], None, "C", 2),
        (["x", "y", "x"], None, "x", 0),
        (["A", "B"], None, "B", 1),  # its letter and its text are of one choice
    ],
)
def test_an_answer_is_a_label_before_it_is_a_text(
    texts: list[str], labels: list[str] | None, answer: str | int, expected: int
) -> None:
    assert place({"text": texts, "label": labels} if labels else texts, answer) == expected
