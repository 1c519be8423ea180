# SPDX-License-Identifier: Apache-2.0
"""What the model answers is what it says greedily, and is held against what is accepted."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import ConfigError, InputError
from model.inputs import Inputs
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from tests.tiny import TINY_TEXT, tiny_model
from tests.trainer.evaluation.asked import SPECS, config_of, engine, letters_processor, measured, task_of
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor
from trainer.evaluation.generation_task import GenerationTask
from trainer.evaluation.task_building import build_task
from trainer.evaluation.task_config import GenerationTaskConfig, MetricName, TaskConfig, TaskKind

MODEL = tiny_model()
ALL = [MetricName.exact_match, MetricName.wer, MetricName.cer, MetricName.rouge_l, MetricName.vqa_match]


def said(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


ROWS = [said("say a", "a"), said("say more than that", "b c d"), said("hi", "hi there"), said("and?", "no")]


def generating(directory: Path, rows: list[dict[str, Any]], **changes: Any) -> GenerationTask:
    of_kind: dict[str, Any] = {key: changes.pop(key) for key in ("max_new_tokens", "normalise") if key in changes}
    of_kind.setdefault("max_new_tokens", 6)
    task = task_of(
        directory, TaskKind.generation, rows, generation=GenerationTaskConfig(**of_kind),
        **changes,
    )  # fmt: skip
    assert isinstance(task, GenerationTask)
    return task


def greedy(prompt: str, spec: SliceSpec, most: int) -> str:
    """Token after token by passes over everything so far."""
    tokenizer = letters_processor().tokenizer
    ids = tokenizer.encode(prompt)
    start = len(ids)
    for _ in range(most):
        logits = MODEL(Inputs.of(torch.tensor([ids])), spec=spec).logits[0, -1]
        token = int(logits[: TINY_TEXT.vocab_size_per_layer_input].argmax())
        if token in {tokenizer.end_of_turn_id, *TINY_TEXT.eos_token_id}:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


def test_answers_are_greedy_and_each_item_has_its_own(tmp_path: Path) -> None:
    task = generating(tmp_path, ROWS, batch_size=3)
    found = measured(task, engine(model=MODEL), SPECS[::2])
    for spec, values in zip(SPECS[::2], found, strict=True):
        for item, value in zip(task.items, values, strict=True):
            row = ROWS[int(item.rpartition(":")[2]) - 1]
            asked = row["messages"][0]["content"]
            prompt = f"<bos><start_of_turn>user\n{asked}<end_of_turn>\n<start_of_turn>model\n"
            assert value["answer"] == greedy(prompt, spec, 6)


def test_what_the_model_says_is_right_if_it_is_accepted(tmp_path: Path) -> None:
    task = generating(tmp_path, ROWS)
    (first,) = measured(task, engine(model=MODEL))
    answers = [value["answer"] for value in first]
    rows = []
    for item, answer in zip(task.items, answers, strict=True):
        row = ROWS[int(item.rpartition(":")[2]) - 1]
        rows.append(row | {"answers": ["something else", answer if len(rows) % 2 else "wrong"]})
    (again,) = measured(generating(tmp_path, rows, normalise=False), engine(model=MODEL))
    figures = [metric.of(again) for metric in generating(tmp_path, rows).metrics]
    assert figures == [0.5]


def test_all_metrics_are_found_at_once(tmp_path: Path) -> None:
    task = generating(tmp_path, ROWS, metrics=ALL)
    (values,) = measured(task, engine(model=MODEL))
    assert [metric.name for metric in task.metrics] == ALL
    for metric in task.metrics:
        assert metric.of(values) >= 0
    assert set(values[0]) == {"answer", *ALL}


def test_a_listed_answer_takes_the_place_of_the_last_turn(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "q?"}
    same = [
        {"messages": [asked], "answers": ["x", "y"]},
        {"messages": [asked, {"role": "assistant", "content": "z"}], "answers": ["x", "y"]},
        {"prompt": "q?", "answers": ["x", "y"]},
        {"prompt": "q?", "completion": "z", "answers": ["x", "y"]},
    ]
    found = [generating(tmp_path, [row]) for row in same]
    assert len({task.fingerprint for task in found}) == 1
    assert found[0].prompts[0].accepted == ("x", "y")
    other = generating(tmp_path, [{"messages": [asked], "gold": ["x", "y"]}], columns={"answers": "gold"})
    assert other.fingerprint == found[0].fingerprint


def test_earlier_turns_of_the_assistant_stay_in_the_prompt(tmp_path: Path) -> None:
    row = {"messages": [*said("a", "x")["messages"], *said("c", "z")["messages"]]}
    task = generating(tmp_path, [row])
    text = letters_processor().tokenizer.decode(task.prompts[0].prompt.ids.tolist())
    assert "x" in text
    assert "z" not in text
    assert task.prompts[0].accepted == ("z",)


def test_pictures_and_sound_are_answered(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    (tmp_path / "a.wav").write_bytes(sound_bytes(300))
    both = "<image_soft_token> and <audio_soft_token>?"
    rows = [
        said(both, "a") | {"images": ["a.png"], "audio": ["a.wav"]}, said("what?", "b"),
        said("see <image_soft_token>?", "c") | {"images": ["a.png"]},
    ]  # fmt: skip
    processor = tiny_media_processor()
    specs = [SliceSpec.full(processor.config.text), SPECS[-1]]
    task = task_of(
        tmp_path, TaskKind.generation, rows, processor, generation=GenerationTaskConfig(max_new_tokens=4), batch_size=2
    )
    assert task.modalities == {Modality.vision, Modality.audio}
    asked = engine(processor)
    together = measured(task, asked, specs)
    assert together == [measured(task, asked, [spec])[0] for spec in specs]
    alone = task_of(
        tmp_path, TaskKind.generation, rows, processor, generation=GenerationTaskConfig(max_new_tokens=4), batch_size=1
    )
    assert [value["answer"] for value in measured(alone, asked, specs)[0]] == [one["answer"] for one in together[0]]


def test_a_damaged_medium_is_told_with_its_row(tmp_path: Path) -> None:
    content = bytearray(picture_bytes(1, side=64))
    (tmp_path / "a.png").write_bytes(content)
    rows = [said("see <image_soft_token>?", "c") | {"images": ["a.png"]}]
    processor = tiny_media_processor()
    task = task_of(tmp_path, TaskKind.generation, rows, processor)
    content[60:90] = bytes(30)  # the header and the end stay
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"rows.jsonl:1: image '.*a.png'"):
        measured(task, engine(processor))


def test_settings_that_change_answers_change_the_fingerprint(tmp_path: Path) -> None:
    found = [
        generating(tmp_path, ROWS), generating(tmp_path, ROWS, max_new_tokens=7),
        generating(tmp_path, ROWS, normalise=False), generating(tmp_path, [*ROWS[:-1], said("and?", "yes")]),
    ]  # fmt: skip
    assert len({task.fingerprint for task in found}) == 4
    assert generating(tmp_path, ROWS, batch_size=1).fingerprint == found[0].fingerprint


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, {}, "messages: found no assistant turn"),
        ({"messages": [*said("a", "b")["messages"], {"role": "user", "content": "q"}]}, {},
         "messages: found no answer in the last turn, which is by user; expected the assistant's, or 'answers'"),
        ({"messages": [{"role": "user", "content": "q"}], "answers": []}, {}, "answers: found an empty list"),
        ({"messages": [{"role": "user", "content": "q"}], "answers": "a"}, {}, "answers: found a string ('a')"),
        ({"messages": [{"role": "user", "content": "q"}], "answers": ["a", None]}, {}, "answers[1]: found null"),
        (said("q", "?!"), {}, "messages: found no word in '?!'; expected some, exact_match compares them"),
        (said("q", "a"), {"metrics": [MetricName.vqa_accuracy]}, "messages: found 1 answers; expected those of at l"),
        ({"text": "a"}, {}, "row: found one of format text; expected a conversation"),
        ({"chosen": "a", "rejected": "b", "prompt": "c"}, {}, "row: found one of format preference"),
        ({"q": "a"}, {}, "row: found none (the row has 'q'); expected the fields of a known format"),
        (said("q" * 99, "a"), {"max_length_tokens": 90}, "messages: found 115 tokens; expected at most 90 (max_length"),
        (said("q", "a"), {"max_new_tokens": 500}, "messages: found 17 tokens; expected at most 12 (the model has 5"),
        (said("q<bos>", "a"), {}, "messages: conversation: message 0 (user) contains '<bos>'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_told_with_its_place(
    tmp_path: Path, row: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        generating(tmp_path, [row], **changes)
    assert "task 'asked': data: 1 of 1 rows cannot be used" in str(error.value)
    assert f"rows.jsonl:1: {message}" in str(error.value)


@pytest.mark.parametrize(("metric", "module"), [("wer", "jiwer"), ("cer", "jiwer"), ("rouge_l", "rouge_score")])
def test_a_library_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, module: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    package = module.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"task 'asked': metrics has {metric}, but {package} is not installed; .*"
                                          rf"pip install {package}"):  # fmt: skip
        generating(tmp_path, ROWS, metrics=[MetricName(metric)])
    assert generating(tmp_path, ROWS).metrics[0].name == "exact_match"


def test_values_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generation.max_new_tokens is 0"):
        generating(tmp_path, ROWS, max_new_tokens=0)
    config: TaskConfig = config_of(tmp_path, TaskKind.generation, ROWS, columns={"question": "q"})
    with pytest.raises(ConfigError, match="task 'asked': columns: 'question' is no field of rows"):
        build_task(config, letters_processor(), has_reference=False)
