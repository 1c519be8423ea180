# SPDX-License-Identifier: Apache-2.0
"""Held-out tasks find what the model says of rows; what is wrong with any task is said before a model is there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import ConfigError, InputError
from model.inputs import Inputs
from model.tower_config import Modality
from tests.tiny import tiny_model
from tests.trainer.evaluation.asked import FULL, SPECS, config_of, engine, letters_processor, measured, task_of
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor, write_jsonl
from trainer.data.collate import Collator
from trainer.evaluation.held_out import score_batches, total
from trainer.evaluation.held_out_task import HeldOutTask
from trainer.evaluation.task import batches_of
from trainer.evaluation.task_building import build_task, build_tasks
from trainer.evaluation.task_config import MetricName, TaskConfig, TaskKind

WORDS = ["abc", "i", "deadbeef", "cab", "face", "bead?", "a, b", "hi"]


def said(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


ROWS = [said(f"say {word}", word) for word in WORDS]


def test_figures_are_those_of_the_whole_set(tmp_path: Path) -> None:
    task = task_of(tmp_path, TaskKind.held_out, ROWS, batch_size=3)
    assert isinstance(task, HeldOutTask)
    found = measured(task, engine(), SPECS)
    model = tiny_model()
    scores = total(score_batches(model, task.rows, SPECS, collator=Collator(0), batch_size=3), SPECS)
    figures = {metric.name: metric for metric in task.metrics}
    for values, score in zip(found, scores, strict=True):
        assert figures["loss"].of(values) == pytest.approx(score.loss, rel=1e-6)
        assert figures["perplexity"].of(values) == pytest.approx(score.perplexity, rel=1e-6)
        assert figures["accuracy"].of(values) == score.accuracy


def test_calibration_is_what_the_probabilities_say(tmp_path: Path) -> None:
    task = task_of(tmp_path, TaskKind.held_out, ROWS)
    assert isinstance(task, HeldOutTask)
    model = tiny_model(spread=2.0)
    (values,) = measured(task, engine(model=model))
    tops, hits = [], []
    for row in task.rows:
        probabilities = model(Inputs.of(row.ids[None]), spec=FULL).logits[0].softmax(dim=-1)
        for place in row.supervised.nonzero()[:, 0].tolist():
            top, likeliest = probabilities[place - 1].max(dim=-1)
            tops.append(top.item())
            hits.append(int(likeliest) == int(row.ids[place]))
    tenths = np.minimum((np.array(tops) * 10).astype(int), 9)
    assert len(set(tenths.tolist())) > 3
    expected = sum(
        (tenths == tenth).mean() * abs(np.array(hits)[tenths == tenth].mean() - np.array(tops)[tenths == tenth].mean())
        for tenth in set(tenths.tolist())
    )
    figures = {metric.name: metric for metric in task.metrics}
    assert figures["ece"].of(values) == pytest.approx(expected, rel=1e-5)
    assert figures["token_accuracy"].of(values) == pytest.approx(np.mean(hits))


def test_a_sub_model_beside_its_parent(tmp_path: Path) -> None:
    config = config_of(tmp_path, TaskKind.held_out, ROWS)
    task = build_task(config, letters_processor(), has_reference=True)
    figures = {metric.name: metric for metric in task.metrics}
    parent, narrow, _ = measured(task, engine(reference=FULL), SPECS)
    assert (figures["agreement"].of(parent), figures["kl"].of(parent)) == (1.0, 0.0)
    assert figures["agreement"].of(narrow) < 1
    assert figures["kl"].of(narrow) > 0


def test_without_a_reference_nothing_is_compared_with_it(tmp_path: Path) -> None:
    task = task_of(tmp_path, TaskKind.held_out, ROWS)
    assert not {"agreement", "kl"} & {metric.name for metric in task.metrics}
    with pytest.raises(
        ConfigError, match="task 'asked': metrics has kl, a comparison with the parent, and there is no"
    ):
        task_of(tmp_path, TaskKind.held_out, ROWS, metrics=[MetricName.loss, MetricName.kl])


def test_the_main_metric_is_the_first_that_is_named(tmp_path: Path) -> None:
    wanted = [MetricName.accuracy, MetricName.loss]
    assert [one.name for one in task_of(tmp_path, TaskKind.held_out, ROWS, metrics=wanted).metrics] == wanted


def test_every_item_is_in_one_batch_in_order(tmp_path: Path) -> None:
    task = task_of(tmp_path, TaskKind.held_out, ROWS, batch_size=3)
    assert [index for batch in task.batches for index in batch] == list(range(len(ROWS)))
    assert len(set(task.items)) == len(ROWS)
    assert max(map(len, task.batches)) == 3


@pytest.mark.parametrize(
    ("weights", "most", "expected"),
    [([1, 1, 1], 2, [(0, 2), (2, 3)]), ([4, 4, 4], 8, [(0, 2), (2, 3)]), ([9, 1, 1], 2, [(0, 1), (1, 3)]),
     ([1], 8, [(0, 1)]), ([3, 3], 2, [(0, 1), (1, 2)])],
)  # fmt: skip
def test_batches_hold_as_much_as_fits(weights: list[int], most: int, expected: list[tuple[int, int]]) -> None:
    assert batches_of(weights, most) == tuple(range(*one) for one in expected)


def test_the_fingerprint_is_of_content_not_of_places_and_batches(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    task = task_of(tmp_path, TaskKind.held_out, ROWS)
    moved = task_of(tmp_path / "other", TaskKind.held_out, ROWS, batch_size=2)
    assert (task.fingerprint, task.digests) == (moved.fingerprint, moved.digests)
    assert len(set(task.digests)) == len(task.items)
    assert moved.items != task.items
    for other in (ROWS[:-1], [*ROWS[:-1], said("say hi", "ho")]):
        assert task_of(tmp_path, TaskKind.held_out, other).fingerprint != task.fingerprint


def test_the_fingerprint_is_of_what_pictures_show(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "<image_soft_token> ?"}, {"role": "assistant", "content": "a"}]}
    found = []
    for shade in (1, 1, 2):
        (tmp_path / "a.png").write_bytes(picture_bytes(shade))
        processor = tiny_media_processor()
        found.append(task_of(tmp_path, TaskKind.held_out, [row | {"images": ["a.png"]}], processor).fingerprint)
    assert found[0] == found[1] != found[2]


def test_some_items_are_the_first_or_drawn_by_a_seed(tmp_path: Path) -> None:
    def places(**changes: Any) -> set[int]:
        task = task_of(tmp_path, TaskKind.held_out, ROWS, **changes)
        return {int(item.rpartition(":")[2]) for item in task.items}

    assert places(max_items=3) == {1, 2, 3}
    drawn = [places(max_items=3, seed=seed) for seed in range(5)]
    assert drawn == [places(max_items=3, seed=seed) for seed in range(5)]
    assert all(map(len, drawn))
    assert len({tuple(sorted(one)) for one in drawn}) > 1
    assert places(max_items=99, seed=0) == set(range(1, len(ROWS) + 1))


def test_towers_that_items_need_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    (tmp_path / "a.wav").write_bytes(sound_bytes(300))
    shown = {"images": ["a.png"]} | said("<image_soft_token>?", "a")
    heard = {"audio": ["a.wav"]} | said("<audio_soft_token>?", "b")
    for rows, expected in (
        (ROWS, set()), ([shown], {Modality.vision}), ([heard], {Modality.audio}),
        ([shown, heard], {Modality.vision, Modality.audio}),
    ):  # fmt: skip
        assert task_of(tmp_path, TaskKind.held_out, rows, tiny_media_processor()).modalities == expected


def test_a_medium_that_no_tower_is_there_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    shown = {"images": ["a.png"]} | said("<image_soft_token>?", "a")
    for kind in (TaskKind.held_out, TaskKind.generation):
        with pytest.raises(InputError, match=r"(?s)task 'asked': .*rows.jsonl:2: messages: .*no vision tower"):
            task_of(tmp_path, kind, [ROWS[0], shown])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "name is 'a b'"),
        ({"files": []}, "task 'asked': files is empty"),
        ({"batch_size": 0}, "task 'asked': batch_size is 0; it must be at least 1"),
        ({"max_items": 0}, "max_items is 0"),
        ({"seed": 1}, "seed is 1, but it draws max_items"),
        ({"metrics": [MetricName.wer]}, "metrics has wer, which kind=held_out has not; it has loss, perplexity, acc"),
        ({"metrics": [MetricName.loss, MetricName.loss]}, "metrics has loss twice"),
        ({"columns": {"question": "q"}}, "'question' is no field of rows"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(tmp_path, TaskKind.held_out, ROWS, **changes)


def test_files_without_rows_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    for kind in TaskKind:
        with pytest.raises(InputError, match=r"task 'asked': data: '.*rows.jsonl' has no rows"):
            task_of(tmp_path, kind, [])
        with pytest.raises(InputError, match=r"task 'asked': data: no file 'nowhere.jsonl'"):
            build_task(
                TaskConfig(name="asked", kind=kind, files=["nowhere.jsonl"]), letters_processor(), has_reference=False
            )
        with pytest.raises(InputError, match=r"(?s)task 'asked': data: 1 of 2 rows.*rows.jsonl:2: found no JSON"):
            task_of(tmp_path, kind, [ROWS[0], "{"])


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(InputError, match=r"found '.*rows.jsonl:2' twice among the items; name each file once"):
        task_of(tmp_path, TaskKind.held_out, ROWS, files=[file, file])


def test_a_row_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)rows.jsonl:3: messages: found \d+ tokens; expected at most 30"):
        task_of(tmp_path, TaskKind.held_out, ROWS, max_length_tokens=30)


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, TaskKind.held_out, ROWS)
    with pytest.raises(ConfigError, match="two are called 'asked'"):
        build_tasks([config, config], letters_processor(), has_reference=False)
    with pytest.raises(ConfigError, match="tasks is empty"):
        build_tasks([], letters_processor(), has_reference=False)


def test_texts_of_any_length_are_items_piece_by_piece(tmp_path: Path) -> None:
    task = task_of(tmp_path, TaskKind.held_out, [{"text": "abcdefghij" * 5}], max_length_tokens=21)
    assert sorted(item.partition(" ")[2] for item in task.items) == [f"(piece {n} of 3)" for n in (1, 2, 3)]
    (values,) = measured(task, engine())
    assert sum(one["tokens"] for one in values) == 50
    assert all(math.isfinite(one["loss_sum"]) for one in values)
    assert torch.tensor([one["right"] for one in values]).le(21).all()
