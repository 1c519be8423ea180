# SPDX-License-Identifier: Apache-2.0
"""Choices are scored by what the model gives for them behind the prompt, and faulty questions are told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import Regex, models, pre_tokenizers

from model.errors import ConfigError, InputError
from model.inputs import Inputs
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from tests.tiny import tiny_config, tiny_model
from tests.trainer.evaluation.asked import FULL, SPECS, engine, letters_processor, measured, task_of
from tests.trainer.parts import CHARACTERS, SPECIAL, picture_bytes, sound_bytes, tiny_media_processor
from trainer.evaluation.metric import Values
from trainer.evaluation.multiple_choice import FIGURES, MultipleChoiceTask
from trainer.evaluation.task import Task
from trainer.evaluation.task_config import MetricName, MultipleChoiceConfig, Scored, TaskKind

ROWS: list[dict[str, Any]] = [
    {"question": "say a", "choices": ["a", "bc", "def gh"], "answer": 0},
    {"question": "and then?", "choices": ["no", "yes, it is"], "answer": "B"},
    {"question": "x", "choices": {"text": ["i", "hi", "hig", "high"], "label": ["1", "2", "3", "4"]}, "answer": "3"},
    {"question": "which?", "choices": ["b", "c"], "answer": "c"},
]
MODEL = tiny_model()
ANSWERS = {1: 0, 2: 1, 3: 2, 4: 1}  # by line


def said(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def asked(directory: Path, rows: list[dict[str, Any]], **changes: Any) -> MultipleChoiceTask:
    of_kind = {key: changes.pop(key) for key in ("choices", "prompt", "scored", "chat", "delimiter") if key in changes}
    task = task_of(
        directory, TaskKind.multiple_choice, rows, multiple_choice=MultipleChoiceConfig(**of_kind), **changes
    )
    assert isinstance(task, MultipleChoiceTask)
    return task


def by_line(task: Task, values: list[Values]) -> dict[int, Values]:
    return {int(item.rpartition(":")[2]): found for item, found in zip(task.items, values, strict=True)}


def log_likelihood(prompt: str, choice: str, spec: SliceSpec) -> float:
    """Of one choice, by one plain pass of the model over everything before each of its tokens."""
    tokenizer = letters_processor().tokenizer
    before, after = tokenizer.encode(prompt), tokenizer.encode(choice)
    logits = MODEL(Inputs.of(torch.tensor([before + after])), spec=spec).logits[0].log_softmax(dim=-1)
    return sum(logits[len(before) - 1 + place, token].item() for place, token in enumerate(after))


@pytest.mark.parametrize("spec", [FULL, SPECS[-1]], ids=lambda spec: spec.name)
def test_a_choice_is_scored_behind_the_prompt_in_a_turn(tmp_path: Path, spec: SliceSpec) -> None:
    task = asked(tmp_path, ROWS)
    (values,) = measured(task, engine(model=MODEL), [spec])
    for line, found in by_line(task, values).items():
        row = ROWS[line - 1]
        texts = row["choices"] if isinstance(row["choices"], list) else row["choices"]["text"]
        prompt = f"<bos><start_of_turn>user\n{row['question']}<end_of_turn>\n<start_of_turn>model\n"
        expected = [log_likelihood(prompt, text, spec) for text in texts]
        assert found["log_likelihoods"] == pytest.approx(expected, rel=1e-5)
        assert found["lengths_bytes"] == [len(text) for text in texts]
        assert found["answer"] == ANSWERS[line]


def test_a_choice_goes_on_with_the_text_where_there_are_no_turns(tmp_path: Path) -> None:
    task = asked(tmp_path, ROWS, chat=False, prompt="q: {question} a:")
    (values,) = measured(task, engine(model=MODEL))
    for line, found in by_line(task, values).items():
        row = ROWS[line - 1]
        texts = row["choices"] if isinstance(row["choices"], list) else row["choices"]["text"]
        expected = [log_likelihood(f"<bos>q: {row['question']} a:", f" {text}", FULL) for text in texts]
        assert found["log_likelihoods"] == pytest.approx(expected, rel=1e-5)
        assert found["lengths_bytes"] == [len(text) for text in texts]  # without the delimiter


def test_letters_of_listed_choices_are_scored(tmp_path: Path) -> None:
    task = asked(tmp_path, ROWS, scored=Scored.letter, chat=False)
    (values,) = measured(task, engine(model=MODEL))
    listed = "<bos>say a\nA. a\nB. bc\nC. def gh\nAnswer:"
    expected = [log_likelihood(listed, f" {letter}", FULL) for letter in "ABC"]
    assert by_line(task, values)[1]["log_likelihoods"] == pytest.approx(expected, rel=1e-5)


def test_a_prompt_takes_any_field_of_the_row(tmp_path: Path) -> None:
    rows = [{"stem": "is it", "passage": "ab {stem}", "options": ["c", "d"], "gold": 1}]
    columns = {"question": "stem", "choices": "options", "answer": "gold"}
    task = asked(tmp_path, rows, columns=columns, prompt="{passage}: {question}", chat=False)
    (values,) = measured(task, engine(model=MODEL))
    expected = [log_likelihood("<bos>ab {stem}: is it", f" {text}", FULL) for text in "cd"]
    assert values[0]["log_likelihoods"] == pytest.approx(expected, rel=1e-5)


def test_figures_follow_from_what_the_choices_are_worth() -> None:
    items = [
        {"log_likelihoods": [-3.0, -4.0], "lengths_bytes": [1, 10], "answer": 0},  # right; by bytes the other
        {"log_likelihoods": [-3.0, -4.0], "lengths_bytes": [1, 10], "answer": 1},  # wrong; right by bytes
        {"log_likelihoods": [-2.0, -2.0, -9.0], "lengths_bytes": [1, 1, 1], "answer": 0},  # alike: the first counts
        {"log_likelihoods": [-1e3, -2e3], "lengths_bytes": [4, 4], "answer": 0},
    ]
    assert FIGURES[MetricName.accuracy].of(items) == 3 / 4
    assert FIGURES[MetricName.accuracy_normalised].of(items) == 3 / 4
    top = 1 / (1 + math.exp(-1))
    even = 1 / (2 + math.exp(-7))
    surprise = -math.log(top) - math.log(1 - top) - math.log(even)
    assert FIGURES[MetricName.loss].of(items) == pytest.approx(surprise / 4)
    # Bins: two at `top` of which one is right, one at `even` (below 0.5) that is right, one at 1 that is right.
    assert FIGURES[MetricName.ece].of(items) == pytest.approx((abs(1 - 2 * top) + (1 - even)) / 4)


def test_sub_models_together_find_what_each_finds_alone(tmp_path: Path) -> None:
    task = asked(tmp_path, ROWS, batch_size=4)
    together = measured(task, engine(model=MODEL), SPECS)
    assert together == [measured(task, engine(model=MODEL), [spec])[0] for spec in SPECS]
    assert len({str(found) for found in together}) == len(SPECS)


def test_batches_count_choices(tmp_path: Path) -> None:
    task = asked(tmp_path, ROWS, batch_size=4)
    sizes = [sum(len(task.questions[index].rows) for index in batch) for batch in task.batches]
    assert sum(sizes) == 11
    assert max(sizes) <= 4


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("question", ["what?", "what <image_soft_token> and <audio_soft_token>?"])
def test_pictures_and_sound_are_shown_in_their_places_or_before(tmp_path: Path, *, chat: bool, question: str) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    (tmp_path / "a.wav").write_bytes(sound_bytes(300))
    row = {"question": question, "choices": ["a", "b"], "answer": 0, "images": ["a.png"], "audio": "a.wav"}
    processor = tiny_media_processor()
    task = task_of(
        tmp_path, TaskKind.multiple_choice, [row], processor, multiple_choice=MultipleChoiceConfig(chat=chat)
    )
    assert task.modalities == {Modality.vision, Modality.audio}
    (values,) = measured(task, engine(processor))
    (tmp_path / "a.png").write_bytes(picture_bytes(7))
    (others,) = measured(task, engine(processor))
    assert np.isfinite(values[0]["log_likelihoods"]).all()
    assert others[0]["log_likelihoods"] != values[0]["log_likelihoods"]


def test_the_last_turn_of_a_conversation_may_be_one_of_the_same_choices(tmp_path: Path) -> None:
    rows = [
        said("is it?", "yes"),
        said("or not?", "no"),
        {"messages": [*said("a", "b")["messages"], *said("c", "no")["messages"]]},
    ]
    task = asked(tmp_path, rows, choices=["yes", "no", "maybe so"])
    (values,) = measured(task, engine(model=MODEL))
    found = by_line(task, values)
    assert [found[line]["answer"] for line in (1, 2, 3)] == [0, 1, 1]
    for line, before in (
        (1, "is it?"),
        (3, "a<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n<start_of_turn>user\nc"),
    ):
        prompt = f"<bos><start_of_turn>user\n{before}<end_of_turn>\n<start_of_turn>model\n"
        expected = [log_likelihood(prompt, text, FULL) for text in ("yes", "no", "maybe so")]
        assert found[line]["log_likelihoods"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match=r"rows.jsonl:2: messages: found 'what' by assistant at the end; expected the"):
        asked(tmp_path, [rows[0], said("a", "what")], choices=["yes", "no"])
    with pytest.raises(
        InputError, match=r"rows.jsonl:1: row: found none \(the row has 'q'\); expected the fields of a"
    ):
        asked(tmp_path, [{"q": "a"}], choices=["yes", "no"])


@pytest.mark.parametrize(
    "changes",
    [{"choices": ["a"]}, {"choices": ["a", "a "]}, {"choices": ["a", " "]},
     {"choices": ["a", "b"], "chat": False}, {"choices": ["a", "b"], "prompt": "q"},
     {"choices": ["a", "b"], "scored": Scored.letter}],
)  # fmt: skip
def test_choices_of_all_rows_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"multiple_choice.choices"):
        MultipleChoiceConfig(**changes)


def test_the_prompt_decides_the_fingerprint(tmp_path: Path) -> None:
    plain = asked(tmp_path, ROWS)
    others = [
        asked(tmp_path, ROWS, chat=False), asked(tmp_path, ROWS, prompt="{question}!"),
        asked(tmp_path, ROWS, scored=Scored.letter), asked(tmp_path, [ROWS[0] | {"answer": 1}, *ROWS[1:]]),
    ]  # fmt: skip
    assert len({plain.fingerprint, *(one.fingerprint for one in others)}) == 5
    assert asked(tmp_path, ROWS, batch_size=1).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "question: found none (the row has 'choices', 'answer'); expected text"),
        ({"question": " ", "choices": ["a", "b"], "answer": 0}, "question: found no text"),
        ({"question": "q", "answer": 0}, "choices: found none (the row has 'question', 'answer'); expected a list"),
        ({"question": "q", "choices": "ab", "answer": 0}, "choices: found a string ('ab'); expected a list of texts"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "choices: found 1 of them; expected at least two"),
        ({"question": "q", "choices": ["a", 2], "answer": 0}, "choices[1]: found a number ('2'); expected a text"),
        ({"question": "q", "choices": ["a", " "], "answer": 0}, "choices[1]: found no text"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "A "]}, "answer": 0},
         "choices.label[1]: found 'A' again; expected labels that differ"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1"]}, "answer": 0}, "choices.label: found 1 of"),
        ({"question": "q", "choices": ["a", "b"]}, "answer: found none (the row has 'question', 'choices'); expected"),
        ({"question": "q", "choices": ["a", "b"], "answer": None}, "answer: found null; expected a place from 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "answer: found 2; expected a place from 0 to 1, A, B"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "answer: found a boolean ('True'); expected"),
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "answer: found 'c'; expected a place from 0 to 1"),
        ({"question": "q", "choices": ["B", "A"], "answer": "A"}, "answer: found 'A', the text of one choice and the"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answer": "A"},
         "answer: found 'A'; expected a place from 0 to 1, 1, 2, or the text of a choice"),
        ({"question": "q<end_of_turn>", "choices": ["a", "b"], "answer": 0}, "question: conversation: message 0"),
        ({"question": "q", "choices": ["a", "b"], "answer": 0, "images": ["a.png"]}, "question: image 'a.png': the m"),
        ({"question": "q" * 99, "choices": ["a", "b"], "answer": 0}, "question: found 116 tokens with a choice; exp"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_question_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        asked(Path(), [ROWS[0], row], max_length_tokens=110)
    assert "task 'asked': data: 1 of 2 rows cannot be used" in str(error.value)
    assert f"\nrows.jsonl:2: {message}" in str(error.value)


def test_faults_are_told_by_the_names_of_columns(tmp_path: Path) -> None:
    rows = [{"stem": "q", "options": ["a", "b"], "gold": 7}]
    with pytest.raises(InputError, match=r"rows.jsonl:1: gold: found 7; expected a place from 0 to 1"):
        asked(tmp_path, rows, columns={"question": "stem", "choices": "options", "answer": "gold"})
    with pytest.raises(
        ConfigError, match="task 'asked': columns: 'stem' is no field of a question; they have question"
    ):
        asked(tmp_path, rows, columns={"stem": "question"})


def test_a_token_over_the_border_counts_with_the_choice(tmp_path: Path) -> None:
    joined = ": "
    pieces = {piece: place for place, piece in enumerate([*SPECIAL, *CHARACTERS, ":", joined])}
    backend = tokenizers.Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r": |[\s\S]"), behavior="isolated")
    backend.add_special_tokens(SPECIAL)
    processor = Processor(Tokenizer(backend.to_str().encode(), {}), None, None, tiny_config())
    task = task_of(
        tmp_path, TaskKind.multiple_choice, ROWS[:1], processor,
        multiple_choice=MultipleChoiceConfig(chat=False, prompt="{question}:"),
    )  # fmt: skip
    assert isinstance(task, MultipleChoiceTask)
    said = [
        [processor.tokenizer.decode([token]) for token in row.ids[row.supervised].tolist()]
        for row in task.questions[0].rows
    ]
    assert said == [[joined, *choice] for choice in ROWS[0]["choices"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"prompt": "what?"}, "the same for all questions; put a field"), ({"prompt": "{choices}?"}, "the same for all"),
     ({"prompt": "{question}", "scored": Scored.letter}, "with scored=letter it must list the choices")],
)  # fmt: skip
def test_a_prompt_that_does_not_ask_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultipleChoiceConfig(**changes)
