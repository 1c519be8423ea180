# SPDX-License-Identifier: Apache-2.0
"""Rows of a sweep: to JSON and back, how large a sub-model is, and rows that cannot stand beside each other."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.shapes import model_shapes
from model.errors import ConfigError, InputError, SliceError
from model.slicing.config import slice_config
from model.slicing.count import Layout
from model.slicing.plan import StoredAs
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT, tiny_config, tiny_model, tiny_multimodal_config
from tests.trainer.parts import SLICES, write_jsonl
from trainer.sweep.row import Figure, Row, read_rows, sizes_of

NARROW = SliceSpec.resolve(SLICES["narrow"], TINY_TEXT)
SHORT = SliceSpec.resolve(SLICES["short"], TINY_TEXT)


def a_row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        "spec": NARROW, "task": "spelling", "num_items": 7, "seconds": 0.5, "seconds_together": 1.5,
        "metrics": {
            "loss": Figure(value=0.1 + 0.2, low=0.25, high=0.375, unit="nats per token", higher_is_better=False),
            "wer": Figure(value=math.nan, low=math.nan, high=math.inf, unit="share", higher_is_better=False),
        },
        "peak_memory_bytes": 12, "model": "abc", "data": "def", "seed": 3, "confidence": 0.95,
        "versions": {"torch": "2"}, **dataclasses.asdict(sizes_of(tiny_config(), NARROW)),
    }  # fmt: skip
    return Row(**values | changes)


def test_a_row_survives_its_file_to_the_last_digit_and_in_strict_json() -> None:
    row = a_row(official="E2.98B", mmlu=0.595)
    line = json.dumps(row.record(), allow_nan=False)
    back = Row.of(json.loads(line))
    assert back.metrics["loss"] == row.metrics["loss"]
    assert all(math.isnan(getattr(back.metrics["wer"], name)) for name in ("value", "low", "high"))
    assert dataclasses.replace(back, metrics={}) == dataclasses.replace(row, metrics={})
    assert json.dumps(back.record()) == line


@pytest.mark.parametrize("spec", [SliceSpec.full(TINY_TEXT), NARROW, SHORT], ids=lambda spec: spec.name)
def test_parameters_are_those_of_the_model_cut_out(spec: SliceSpec) -> None:
    config = tiny_multimodal_config()
    small = slice_config(config, SubModel(spec))
    sizes = sizes_of(config, spec)
    assert sizes.parameters == sum(parameter.numel() for parameter in tiny_model(small).parameters())
    entries = sum(math.prod(shape) for shape in model_shapes(small, Layout.used).values())
    assert sizes.weight_bytes == 2 * entries
    assert sizes_of(config, spec, stored_as=StoredAs.fp32).weight_bytes == 4 * entries
    # Keys and values, two heads of 8 each, 16 bits, in every kept layer that reads no other's.
    producers = sum(layer < TINY_TEXT.first_shared_layer for layer in spec.kept_layers)
    assert sizes.kv_bytes_per_token == 2 * producers * TINY_TEXT.num_key_value_heads * TINY_TEXT.head_dim * 2


def test_work_grows_by_what_a_neuron_costs_and_by_what_is_looked_back_at() -> None:
    full, narrow = sizes_of(tiny_config(), SliceSpec.full(TINY_TEXT)), sizes_of(tiny_config(), NARROW)
    # Three matrices meet each neuron, two operations an entry.
    dropped = sum(TINY_TEXT.intermediate_size) - sum(NARROW.ffn_widths)
    assert full.flops_per_token - narrow.flops_per_token == 2 * 3 * TINY_TEXT.hidden_size * dropped
    assert full.flops_context_tokens == TINY_TEXT.sliding_window
    longer = sizes_of(tiny_config(), NARROW, context_tokens=TINY_TEXT.sliding_window + 10)
    heads, num_global = TINY_TEXT.num_attention_heads * TINY_TEXT.head_dim, 3
    assert longer.flops_per_token - narrow.flops_per_token == 4 * 10 * heads * num_global


def test_sizes_of_what_is_no_part_are_refused() -> None:
    with pytest.raises(SliceError, match="layer 0 asks for width 49"):
        sizes_of(tiny_config(), SliceSpec("wide", (0,), (49,)))
    with pytest.raises(ConfigError, match="context is 513 tokens"):
        sizes_of(tiny_config(), NARROW, context_tokens=513)


def test_rows_of_one_sweep_are_read_in_order(tmp_path: Path) -> None:
    rows = [a_row(metrics={}), a_row(metrics={}, task="counting", data="other"), a_row(metrics={}, spec=SHORT)]
    path = write_jsonl(tmp_path / "rows.jsonl", [row.record() for row in rows])
    assert read_rows(path) == [(f"{path}:{number}", row) for number, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "xyz", "spec": SHORT}, r"rows\.jsonl:3: .*on the model .*'xyz' here, 'abc' in .*rows\.jsonl:1"),
        ({"data": "xyz", "spec": SHORT}, r"rows\.jsonl:3: .* data of task .spelling..*'def' in .*rows\.jsonl:1"),
        ({"spec": SliceSpec("narrow", (0,), (4,)), "task": "b", "data": "b"}, r"rows\.jsonl:3: .*what sub-model"),
        ({}, r"rows\.jsonl:3: sub-model 'narrow' on task 'spelling' stands in .*rows\.jsonl:1 already"),
    ],
)  # fmt: skip
def test_rows_that_disagree_are_refused_with_both_places(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    other = a_row(task="counting", data="ghi")
    path = write_jsonl(tmp_path / "rows.jsonl", [a_row().record(), other.record(), a_row(**changes).record()])
    with pytest.raises(InputError, match=told):
        read_rows(path)


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"spec": 1}'])
def test_a_line_that_is_no_row_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [a_row().record(), line])
    with pytest.raises(InputError, match=r"rows\.jsonl:2: "):
        read_rows(path)


@pytest.mark.parametrize("changes", [{"seconds": "long"}, {"parameters": 1.5}, {"surplus": 1}, {"model": None}])
def test_a_row_of_other_types_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(changes))}"):
        Row.of(a_row().record() | changes, where="rows.jsonl:1")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl: rows of a sweep cannot be read"):
        read_rows(tmp_path / "rows.jsonl")
