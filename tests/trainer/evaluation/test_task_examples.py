# SPDX-License-Identifier: Apache-2.0
"""The tasks of conf/task are tasks, and do on rows like those they name what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.trainer.evaluation.asked import config_of, engine, letters_processor, measured
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor
from trainer.evaluation.task_building import build_task
from trainer.evaluation.task_config import TaskConfig

CONF = Path(__file__).parents[3] / "conf" / "task"


def said(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


ROWS: dict[str, list[dict[str, Any]]] = {  # as the data have them, but for the letters that the tiny tokenizer knows
    "demo_topic": [said("a text. topic?", "Arts")],
    "demo_topic_choice": [said("a text. topic?", "Arts"), said("another. topic?", "Technology")],
    "demo_digit": [said("<image_soft_token>in a word?", "two") | {"images": ["a.png"]}],
    "demo_say": [said("<audio_soft_token>in a word?", "two") | {"audio": ["a.wav"]}],
    "arc_easy": [
        {"id": "x", "question": "which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
        {"id": "y", "question": "who?", "choices": {"text": ["i", "you"], "label": ["1", "2"]}, "answerKey": "1"},
    ],
    "mmlu": [{"question": "which?", "subject": "law", "choices": ["one", "two", "x", "y"], "answer": 3}],
}


def example(name: str) -> TaskConfig:
    found = OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(CONF / f"{name}.yaml"))
    config = OmegaConf.to_object(found)
    assert isinstance(config, TaskConfig)
    return config


@pytest.mark.parametrize("name", ROWS)
def test_an_example_says_what_it_is_and_how_to_run_it(name: str) -> None:
    first, second, *_ = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert second.startswith("#   matslice sweep ")
    assert f" tasks={name} " in second


def test_every_example_is_tried() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_an_example_goes_by_its_name_and_measures_rows_like_those_it_names(tmp_path: Path, name: str) -> None:
    config = example(name)
    assert config.name == name
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    (tmp_path / "a.wav").write_bytes(sound_bytes(300))
    config.files = config_of(tmp_path, config.kind, ROWS[name]).files
    has_media = name in ("demo_digit", "demo_say")
    processor = tiny_media_processor() if has_media else letters_processor()
    task = build_task(config, processor, has_reference=False)
    (values,) = measured(task, engine(processor))
    assert len(values) == len(ROWS[name])
    values = json.loads(json.dumps(values))  # as they come back from a file
    for metric in task.metrics:
        assert metric.of(values) >= 0
    if name == "arc_easy":
        places = {item.rpartition(":")[2]: found["answer"] for item, found in zip(task.items, values, strict=True)}
        assert places == {"1": 1, "2": 0}


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("demo_")])
def test_examples_of_the_demo_are_of_files_that_it_writes(name: str) -> None:
    (file,) = example(name).files
    task = name.removeprefix("demo_").removesuffix("_choice")
    assert file == f"out/demo/data/{task}/test.jsonl"
