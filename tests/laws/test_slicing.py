# SPDX-License-Identifier: Apache-2.0
"""The laws of slicing (L1 to L8) for the plain model with its towers, over random legal sub-models."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoint.load import load
from model.checkpoint.reader import Checkpoint
from model.checkpoint.shapes import model_shapes
from model.checkpoint.writer import save
from model.gemma3n import Gemma3n
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.config import slice_config, slice_text_config
from model.slicing.count import Layout, count_parameters
from model.slicing.cuts import place
from model.slicing.module import slice_module
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from tests.laws.drawn import (
    assert_close,
    assert_same_tensors,
    backward_of,
    in_float64,
    left_out,
    scratch,
    specs,
    weights,
)
from tests.tiny import TINY_TEXT, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
CONFIG = tiny_multimodal_config()
INPUTS = tiny_multimodal_inputs(CONFIG, "text image audio", "audio text")


@cache
def parent(dtype: torch.dtype = torch.float32) -> Gemma3n:
    return tiny_model(CONFIG, dtype=dtype)


@given(spec=specs(TINY_TEXT))
@settings(max_examples=10)
@torch.no_grad()
def test_the_forward_pass_of_a_spec_is_that_of_the_sliced_model(spec: SliceSpec) -> None:
    whole = parent(torch.float64)
    with in_float64():
        assert_close(whole(INPUTS, spec).logits, slice_module(whole, spec)(INPUTS).logits)


@given(spec=specs(TINY_TEXT))
@settings(max_examples=8)
def test_kept_entries_get_the_sliced_models_gradients_and_cut_entries_none(spec: SliceSpec) -> None:
    whole = parent(torch.float64)
    small = slice_module(whole, spec)
    with in_float64():
        ours = backward_of(whole, whole(INPUTS, spec).logits)
        expected = backward_of(small, small(INPUTS).logits)
    for name, gradient in ours.items():
        placement = place(name, spec, TINY_TEXT)
        if placement is None:
            assert gradient is None, f"{name} is of a skipped layer"
            continue
        reference = expected[placement.name]
        if gradient is None or reference is None:  # a layer that ends in the last kept one's unread keys
            assert gradient is reference, name
            continue
        assert_close(placement.take(gradient), reference, name)
        assert not left_out(gradient, placement).any(), name


@given(spec=specs(TINY_TEXT), modalities=st.sets(st.sampled_from(Modality)))
@settings(max_examples=6)
def test_slicing_a_checkpoint_is_saving_the_sliced_model(spec: SliceSpec, modalities: set[Modality]) -> None:
    with scratch() as directory:
        save(parent(), directory / "parent", max_shard_bytes=90_000)
        slice_checkpoint(Checkpoint.open(directory / "parent"), directory / "sliced", spec, modalities=modalities)
        part = load(directory / "parent", dtype=torch.float32, modalities=modalities)
        save(slice_module(part, spec), directory / "saved")
        sliced, saved = Checkpoint.open(directory / "sliced"), Checkpoint.open(directory / "saved")
        assert_same_tensors(
            {name: sliced.tensor(name) for name in sliced.names()},
            {name: saved.tensor(name) for name in saved.names()},
        )
        configs = [json.loads((directory / kind / "config.json").read_text()) for kind in ("sliced", "saved")]
        assert configs[0] == configs[1]
        read = load(directory / "parent", dtype=torch.float32, spec=spec, modalities=modalities)
        assert_same_tensors(weights(read), weights(load(directory / "sliced", dtype=torch.float32)))


@given(data=st.data())
@settings(max_examples=12)
def test_slicing_twice_is_slicing_once_by_the_composed_spec(data: st.DataObject) -> None:
    first = data.draw(specs(TINY_TEXT))
    middle = slice_text_config(TINY_TEXT, first)
    second = data.draw(specs(middle))
    composed = first.then(second)
    assert slice_text_config(middle, second) == slice_text_config(TINY_TEXT, composed)
    twice = slice_module(slice_module(parent(), first), second)
    assert_same_tensors(weights(twice), weights(slice_module(parent(), composed)))


def test_the_full_spec_changes_nothing() -> None:
    full = SliceSpec.full(TINY_TEXT)
    assert slice_text_config(TINY_TEXT, full) == TINY_TEXT
    assert_same_tensors(weights(slice_module(parent(), full)), weights(parent()))
    with torch.no_grad():
        assert torch.equal(parent()(INPUTS, full).logits, parent()(INPUTS).logits)


@given(spec=specs(TINY_TEXT))
@settings(max_examples=12)
def test_as_many_parameters_are_counted_as_are_built(spec: SliceSpec) -> None:
    counted = count_parameters(model_shapes(CONFIG, Layout.used).items(), spec, TINY_TEXT)
    built = Gemma3n.build(slice_config(CONFIG, spec), device="meta")
    assert counted == sum(parameter.numel() for parameter in built.parameters())


@given(spec=specs(TINY_TEXT))
@settings(max_examples=12)
def test_tensors_are_placed_where_the_model_of_the_sliced_config_has_them(spec: SliceSpec) -> None:
    placed = {
        placement.name: placement.shape(parameter.shape)
        for name, parameter in parent().named_parameters()
        if (placement := place(name, spec, TINY_TEXT))
    }
    built = Gemma3n.build(slice_config(CONFIG, spec), device="meta")
    assert placed == {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}


@given(spec=specs(TINY_TEXT))
def test_a_sliced_reader_reads_what_it_read_in_the_parent(spec: SliceSpec) -> None:
    small = slice_text_config(TINY_TEXT, spec)
    for position, layer in enumerate(spec.kept_layers):
        assert spec.kept_layers[small.kv_producer(position)] == TINY_TEXT.kv_producer(layer)
