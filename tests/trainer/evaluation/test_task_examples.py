# SPDX-License-Identifier: Apache-2.0
"""The tasks of conf/task are tasks, and do on rows like those they name what they say.

Those of public data are asked rows in the columns, types and oddities of these, from a file as the hub has it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from omegaconf import OmegaConf

from tests.trainer.evaluation.asked import config_of, engine, letters_processor, measured
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor
from trainer.evaluation.multiple_choice import is_right
from trainer.evaluation.task_building import build_task
from trainer.evaluation.task_config import PLACE, TaskConfig

CONF = Path(__file__).parents[3] / "conf" / "task"


def said(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def arc(name: str, asked: str, texts: list[str], labels: str, key: str) -> dict[str, Any]:
    return {"id": name, "question": asked, "choices": {"text": texts, "label": list(labels)}, "answerKey": key}


ROWS: dict[str, list[dict[str, Any]]] = {  # as the data have them, but for the letters that the tiny tokenizer knows
    "demo_topic": [said("a text. topic?", "Arts")],
    "demo_topic_choice": [said("a text. topic?", "Arts"), said("another. topic?", "Technology")],
    "demo_digit": [said("<image_soft_token>in a word?", "two") | {"images": ["a.png"]}],
    "demo_say": [said("<audio_soft_token>in a word?", "two") | {"audio": ["a.wav"]}],
    "arc_easy": [
        arc("Mercury_7175875", "which is a planet?", ["the moon", "mars", "the sun", "a comet"], "ABCD", "B"),
        # Some are labelled by numbers, and some of these ask for numbers.
        arc("NYSEDREGENTS_2012_4_8", "how many legs has a fly?", ["4", "6", "2", "8"], "1234", "2"),
        arc("NYSEDREGENTS_2010_4_1", "how many poles has a magnet?", ["4", "3", "2", "1"], "1234", "3"),
        arc("MDSA_2009_5_21", "which blood groups can give to all?", ["B", "A", "O", "AB"], "ABCD", "C"),
        arc("VASoL_2007_3_11", "which letter is a vitamin?", ["D", "C", "B", "X"], "ABCD", "B"),
        arc("OHAT_2007_8_40", "which floats?", ["a stone", "wood", "iron"], "ABC", "B"),  # a few have three
        arc("TIMSS_2003_4_pg9", "which is hot?", ["ice", "snow", "rain", "fog", "fire"], "ABCDE", "E"),  # or five
    ],
    "mmlu": [
        {"question": "find the order of <2> in z_6.", "subject": "abstract_algebra", "choices": ["3", "2", "6", "12"],
         "answer": 0},
        # Nine of the test split read the same in two places, four of them in that of the answer.
        {"question": "what changes? supply \u00a0 demand", "subject": "high_school_macroeconomics", "answer": 3,
         "choices": ["up \u00a0 up", "same \u00a0 same", "up \u00a0 same", "up \u00a0 up"]},
        {"question": "which are?", "subject": "business_ethics", "answer": 1, "choices": ["x, y", "y, z", "w", "w"]},
    ],
}  # fmt: skip
PLACES = {"arc_easy": [1, 1, 2, 2, 1, 1, 4], "mmlu": [0, 3, 1]}  # of the answers
TEXT = Value("string")
COLUMNS = {  # of public data, as their cards declare them
    "arc_easy": Features({
        "id": TEXT, "question": TEXT, "choices": Sequence({"text": TEXT, "label": TEXT}), "answerKey": TEXT,
    }),
    "mmlu": Features({
        "question": TEXT, "subject": TEXT, "choices": Sequence(TEXT), "answer": ClassLabel(names=list("ABCD")),
    }),
}  # fmt: skip


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
    if name in COLUMNS:
        config.files = [str(tmp_path / "rows.parquet")]
        Dataset.from_list(ROWS[name], features=COLUMNS[name]).to_parquet(config.files[0])
    has_media = name in ("demo_digit", "demo_say")
    processor = tiny_media_processor() if has_media else letters_processor()
    task = build_task(config, processor, has_reference=False)
    (values,) = measured(task, engine(processor))
    assert len(values) == len(ROWS[name])
    values = json.loads(json.dumps(values))  # as they come back from a file
    for metric in task.metrics:
        assert metric.of(values) >= 0
    if name in PLACES:
        found = {item: one["answer"] for item, one in zip(task.items, values, strict=True)}
        assert by_place(found) == PLACES[name]
        # An answer that is the likeliest is right, wherever it stands.
        for one in values:
            liked = [0.0 if place == one["answer"] else -9.0 for place in range(len(one["log_likelihoods"]))]
            assert is_right({**one, "log_likelihoods": liked}) == 1.0


def by_place(found: dict[str, int]) -> list[int]:
    """In the order of the rows, whose numbers their names end with."""
    return [found[item] for item in sorted(found, key=lambda item: int(item.rpartition(" ")[2]))]


@pytest.mark.parametrize("name", COLUMNS)
def test_examples_read_columns_that_public_data_have(name: str) -> None:
    config = example(name)
    fields = {"question", "choices", "answer", *PLACE.findall(config.multiple_choice.template)}
    assert {config.columns.get(field, field) for field in fields} <= set(COLUMNS[name])


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("demo_")])
def test_examples_of_the_demo_are_of_files_that_it_writes(name: str) -> None:
    (file,) = example(name).files
    task = name.removeprefix("demo_").removesuffix("_choice")
    assert file == f"out/demo/data/{task}/test.jsonl"
