# SPDX-License-Identifier: Apache-2.0
"""Another way of judging answers is told in another way, the same in the same."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.harness.judging import SAID, judging_of

USUAL: dict[str, Any] = {
    "output_type": "generate_until",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
    "filter_list": [{"name": "first", "filter": [{"function": "regex", "regex_pattern": "(\\S+)"}]}],
    "repeats": 1,
    "generation_kwargs": {"until": ["\n"]},
}


def judged(**said: Any) -> dict[str, Any]:
    """Of a task that says so."""
    return judging_of(SimpleNamespace(config=SimpleNamespace(**(USUAL | said))))


@pytest.mark.parametrize(
    "said",
    [
        {"metric_list": [{**USUAL["metric_list"][0], "ignore_case": False}]},
        {"metric_list": [{**USUAL["metric_list"][0], "higher_is_better": False}]},
        {"filter_list": [{"name": "first", "filter": [{"function": "regex", "regex_pattern": "(x)"}]}]},
        {"filter_list": None}, {"output_type": "multiple_choice"}, {"repeats": 4}, {"generation_kwargs": None},
        {"process_results": str.strip}, {"process_results": functools.partial(str.strip, "x")},
    ],
    ids=lambda said: next(iter(said)),
)  # fmt: skip
def test_whatever_decides_what_an_answer_is_worth_is_told(said: dict[str, Any]) -> None:
    assert judged() == judged()
    assert judged(**said) != judged()
    assert set(said) <= set(SAID)


def function_in(file: Path, text: str) -> Any:
    """A task's own function, read from its file as the harness reads it."""
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("task_functions", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module.judge


def test_a_function_is_told_with_the_text_of_those_it_calls(tmp_path: Path) -> None:
    text = "def helped(said):\n    return said == 'a'\n\n\ndef judge(_, said):\n    return {'acc': helped(said)}\n"
    first = judged(process_results=function_in(tmp_path / "functions.py", text))
    again = judged(process_results=function_in(tmp_path / "functions.py", text))
    assert first == again  # of another object at another address
    assert judged(process_results=function_in(tmp_path / "functions.py", text.replace("'a'", "'b'"))) != first


def test_a_class_of_a_tasks_own_is_told() -> None:
    class Own(SimpleNamespace):
        """Not the harness's."""

    found = judging_of(Own(config=SimpleNamespace(**USUAL)))
    assert found["class"][0].endswith("Own")
    assert len(found["class"][1]) == 64
