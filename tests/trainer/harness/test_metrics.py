# SPDX-License-Identifier: Apache-2.0
"""Figures of lm-evaluation-harness that are functions of sums are found; others are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model.errors import ConfigError
from trainer.harness.metrics import AGGREGATIONS, metrics_of, refuse_unknown


def aggregation(name: str) -> Callable[[Any], float]:
    """One that goes by the name of the harness's own."""

    def put_together(items: Any) -> float:
        raise AssertionError(items)

    put_together.__name__, put_together.__module__ = name, AGGREGATIONS
    return put_together


class Theirs:
    """What the harness's tasks tell of their figures."""

    def __init__(self, **names: str) -> None:
        self.found = {metric: aggregation(name) for metric, name in names.items()}

    def aggregation(self) -> dict[str, Callable[[Any], float]]:
        return self.found

    def higher_is_better(self) -> dict[str, bool]:
        return {"word_perplexity": False}


def test_a_mean_counts_every_item_that_has_the_figure() -> None:
    (metric,) = metrics_of(Theirs(acc="mean"), ["none"], [], "lm_eval:task")
    assert metric.of([{"metrics": {"acc": 1}}, {"metrics": {"acc": 0.0}}, {"metrics": {}}]) == 0.5
    assert metric.higher_is_better


def test_a_perplexity_is_of_all_texts_together() -> None:
    asked = Theirs(word_perplexity="weighted_perplexity", bits="bits_per_byte", perplexity="perplexity")
    words, bits, plain = metrics_of(asked, ["none"], [], "lm_eval:task")
    values = [
        {"metrics": {"word_perplexity": [-6.0, 2], "bits": [-6.0, 2], "perplexity": -6.0}},
        {"metrics": {"word_perplexity": [-2.0, 6], "bits": [-2.0, 6], "perplexity": -2.0}},
    ]
    assert words.of(values) == pytest.approx(math.e)
    assert bits.of(values) == pytest.approx(1 / math.log(2))
    assert plain.of(values) == pytest.approx(math.exp(4))
    assert not words.higher_is_better
    table = words.table(values)
    assert words.finish(np.stack([table.sum(axis=0)] * 3)).shape == (3,)  # of resamplings at once


def test_every_filter_of_answers_has_its_figures() -> None:
    found = metrics_of(Theirs(exact_match="mean"), ["strict-match", "none"], [], "lm_eval:task")
    assert [metric.name for metric in found] == ["exact_match,strict-match", "exact_match"]


def test_figures_of_another_kind_are_refused_by_name_unless_others_are_chosen() -> None:
    asked = Theirs(acc="mean", f1="f1_score")
    with pytest.raises(
        ConfigError, match=r"lm_eval:task: its metric 'f1' is put together by 'f1_score'.*metrics=\[acc\]"
    ):
        metrics_of(asked, ["none"], [], "lm_eval:task")
    assert [metric.name for metric in metrics_of(asked, ["none"], ["acc"], "lm_eval:task")] == ["acc"]


def test_of_several_tasks_each_gives_those_figures_that_it_has() -> None:
    first, second, third = Theirs(acc="mean", f1="f1_score"), Theirs(acc_norm="mean", acc="mean"), Theirs(em="mean")
    wanted = ["acc_norm", "acc"]
    found = [[one.name for one in metrics_of(task, ["none"], wanted, "x")] for task in (first, second, third)]
    assert found == [["acc"], ["acc_norm", "acc"], ["em"]]
    known = {"lm_eval:a": ["acc", "f1"], "lm_eval:b": ["acc_norm"]}
    refuse_unknown(wanted, known)
    with pytest.raises(
        ConfigError, match=r"no task has a metric 'mcc' \(metrics\); lm_eval:a has acc, f1; lm_eval:b has acc_norm"
    ):
        refuse_unknown(["acc", "mcc"], known)


def test_what_is_to_be_chosen_instead_leaves_other_tasks_what_they_have() -> None:
    with pytest.raises(ConfigError, match=r"choose others by metrics=\[em,acc\]"):
        metrics_of(Theirs(acc="mean", f1="f1_score"), ["none"], ["em", "f1"], "lm_eval:task")


def test_a_function_of_the_task_that_is_called_mean_is_no_mean() -> None:
    asked = Theirs(acc="mean")
    asked.found["acc"].__module__ = "utils"
    with pytest.raises(ConfigError, match="its metric 'acc' is put together by 'mean', which is no mean over items"):
        metrics_of(asked, ["none"], [], "lm_eval:task")
