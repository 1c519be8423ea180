# SPDX-License-Identifier: Apache-2.0
"""Figures of lm-evaluation-harness that are functions of sums are found; others are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model.errors import ConfigError
from trainer.harness.metrics import AGGREGATIONS, metrics_of


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
    with pytest.raises(ConfigError, match=r"lm_eval:task: has no metric 'mcc'; it has acc, f1"):
        metrics_of(asked, ["none"], ["mcc"], "lm_eval:task")


def test_a_function_of_the_task_that_is_called_mean_is_no_mean() -> None:
    asked = Theirs(acc="mean")
    asked.found["acc"].__module__ = "utils"
    with pytest.raises(ConfigError, match="its metric 'acc' is put together by 'mean', which is no mean over items"):
        metrics_of(asked, ["none"], [], "lm_eval:task")
