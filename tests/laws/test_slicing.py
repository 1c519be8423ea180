# SPDX-License-Identifier: Apache-2.0
"""The laws of slicing (L1 to L8) for the plain model with its towers, over random legal sub-models."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.audio.tower import AudioTower
from model.checkpoint.load import load
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save
from model.checkpoint.shapes import model_shapes
from model.checkpoint.tensors import read_tensor
from model.gemma3n import Gemma3n
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.config import slice_config, slice_text_config
from model.slicing.count import Layout, count_parameters
from model.slicing.cuts import place
from model.slicing.module import slice_module, take
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary
from tests.laws.drawn import (
    assert_close,
    assert_same_tensors,
    backward_of,
    in_float64,
    left_out,
    scratch,
    specs,
    sub_models,
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
        assert_close(whole(INPUTS, spec).logits, slice_module(whole, SubModel(spec))(INPUTS).logits)


@given(spec=specs(TINY_TEXT))
@settings(max_examples=12)
@torch.no_grad()
def test_in_float32_too_a_spec_computes_what_the_sliced_model_does(spec: SliceSpec) -> None:
    whole, small = parent()(INPUTS, spec).logits, slice_module(parent(), SubModel(spec))(INPUTS).logits
    # Bit for bit the same where a narrowed product runs in the kernel of a narrow one, as on the CPUs tried.
    assert torch.equal(whole, small) or (whole - small).abs().max() <= 1e-6 * small.abs().max()


@given(spec=specs(TINY_TEXT))
@settings(max_examples=8)
def test_kept_entries_get_the_sliced_models_gradients_and_cut_entries_none(spec: SliceSpec) -> None:
    whole = parent(torch.float64)
    small = slice_module(whole, SubModel(spec))
    with in_float64():
        ours = backward_of(whole, whole(INPUTS, spec).logits)
        expected = backward_of(small, small(INPUTS).logits)
    for name, gradient in ours.items():
        placement = place(name, SubModel(spec), TINY_TEXT)
        if placement is None:
            assert gradient is None, f"{name} is of a skipped layer"
            continue
        reference = expected[placement.name]
        if gradient is None or reference is None:  # a layer that ends in the last kept one's unread keys
            assert gradient is reference, name
            continue
        assert_close(take(placement, gradient), reference, name)
        assert not left_out(gradient, placement).any(), name


@given(sub=sub_models(CONFIG))
@settings(max_examples=6)
def test_slicing_a_checkpoint_is_saving_the_sliced_model(sub: SubModel) -> None:
    with scratch() as directory:
        save(parent(), directory / "parent", max_shard_bytes=90_000)
        slice_checkpoint(directory / "parent", directory / "sliced", sub, max_shard_bytes=50_000)
        save(slice_module(parent(), sub), directory / "saved")
        sliced, saved = Checkpoint.open(directory / "sliced"), Checkpoint.open(directory / "saved")
        assert_same_tensors(
            {name: read_tensor(sliced, name) for name in sliced.names()},
            {name: read_tensor(saved, name) for name in saved.names()},
        )
        assert sliced.fingerprint() == saved.fingerprint()
        configs = [json.loads((directory / kind / "config.json").read_text()) for kind in ("sliced", "saved")]
        assert configs[0] == configs[1]
        read = load(directory / "parent", dtype=torch.float32, spec=sub.spec, modalities=sub.modalities)
        around = dataclasses.replace(sub, spec=SliceSpec.full(read.config.text), modalities=None)
        assert_same_tensors(
            weights(slice_module(read, around)), weights(load(directory / "sliced", dtype=torch.float32))
        )


@given(data=st.data())
@settings(max_examples=12)
def test_slicing_twice_is_slicing_once_by_the_composed_description(data: st.DataObject) -> None:
    first = data.draw(sub_models(CONFIG))
    middle = slice_config(CONFIG, first)
    second = data.draw(sub_models(middle))
    composed = first.then(second)
    assert slice_config(middle, second) == slice_config(CONFIG, composed)
    twice = slice_module(slice_module(parent(), first), second)
    assert_same_tensors(weights(twice), weights(slice_module(parent(), composed)))


def test_the_full_spec_changes_nothing() -> None:
    full = SliceSpec.full(TINY_TEXT)
    everything = SubModel(full, CONFIG.modalities, (0, 1, 2), Vocabulary.full(CONFIG))
    for sub in (SubModel(full), everything):
        assert slice_config(CONFIG, sub) == CONFIG
        assert_same_tensors(weights(slice_module(parent(), sub)), weights(parent()))
    with torch.no_grad():
        assert torch.equal(parent()(INPUTS, full).logits, parent()(INPUTS).logits)


@given(sub=sub_models(CONFIG))
@settings(max_examples=15)
def test_as_many_parameters_are_counted_as_are_built(sub: SubModel) -> None:
    counted = count_parameters(model_shapes(CONFIG, Layout.used).items(), sub, TINY_TEXT)
    built = Gemma3n.build(slice_config(CONFIG, sub), device="meta")
    assert counted == sum(parameter.numel() for parameter in built.parameters())


@given(sub=sub_models(CONFIG))
@settings(max_examples=15)
def test_tensors_are_placed_where_the_model_of_the_sliced_config_has_them(sub: SubModel) -> None:
    placed = {
        placement.name: placement.shape(parameter.shape)
        for name, parameter in parent().named_parameters()
        if (placement := place(name, sub, TINY_TEXT))
    }
    built = Gemma3n.build(slice_config(CONFIG, sub), device="meta")
    assert placed == {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}


@given(spec=specs(TINY_TEXT))
def test_a_sliced_reader_reads_what_it_read_in_the_parent(spec: SliceSpec) -> None:
    small = slice_text_config(TINY_TEXT, spec)
    for position, layer in enumerate(spec.kept_layers):
        assert spec.kept_layers[small.kv_producer(position)] == TINY_TEXT.kv_producer(layer)


@given(kept=st.sets(st.sampled_from(range(3)), min_size=1))
@torch.no_grad()
def test_a_sliced_audio_tower_is_the_tower_without_those_layers(kept: set[int]) -> None:
    layers = tuple(sorted(kept))
    small = slice_module(parent(), SubModel(SliceSpec.full(TINY_TEXT), audio_layers=layers))
    whole = tiny_model(CONFIG)
    tower = cast(AudioTower, whole.model.audio_tower)
    tower.conformer = nn.ModuleList(tower.conformer[layer] for layer in layers)
    assert torch.equal(small(INPUTS).logits, whole(INPUTS).logits)


@given(wanted=st.sets(st.sampled_from(range(80))))
@settings(max_examples=10)
@torch.no_grad()
def test_a_smaller_vocabulary_gives_kept_tokens_the_scores_they_had(wanted: set[int]) -> None:
    vocabulary = Vocabulary.of({*wanted, *INPUTS.ids.flatten().tolist()}, CONFIG)
    small = slice_module(parent(), SubModel(SliceSpec.full(TINY_TEXT), vocabulary=vocabulary))
    ids = INPUTS.ids.clone().apply_(vocabulary.new_id)
    kept = [vocabulary.old_id(new) for new in range(small.config.text.vocab_size)]
    assert torch.equal(small(dataclasses.replace(INPUTS, ids=ids)).logits, parent()(INPUTS).logits[..., kept])
