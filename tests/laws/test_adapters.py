# SPDX-License-Identifier: Apache-2.0
"""The laws of slicing for a model whose decoder, towers and embedders have a LoRA adapter, over random sub-models."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from model.adapter.lora import AdapterConfig, attach, load_adapter, merge, save_adapter
from model.adapter.targets import TargetSet
from model.gemma3n import Gemma3n
from model.slicing.adapter import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, slice_adapter, slice_tensors
from model.slicing.config import slice_config
from model.slicing.module import slice_module, take
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from tests.laws.drawn import (
    assert_close,
    assert_same_tensors,
    backward_of,
    in_float64,
    scratch,
    specs,
    sub_models,
    weights,
)
from tests.tiny import TINY_TEXT, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
CONFIG = tiny_multimodal_config()
INPUTS = tiny_multimodal_inputs(CONFIG, "text image audio", "audio text", padding="right")


@cache
def trained() -> Path:
    """An adapter on everything that can be adapted, whose update is far from zero."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory)
    torch.manual_seed(3)
    adapted = attach(tiny_model(CONFIG), AdapterConfig(targets=list(TargetSet), rank=3, alpha=6))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    save_adapter(adapted, directory / "adapter")
    return directory / "adapter"


@cache
def parent() -> PeftModel:
    return load_adapter(tiny_model(CONFIG, dtype=torch.float64), trained(), trainable=True).double()


@cache
def base() -> Gemma3n:
    return tiny_model(CONFIG, dtype=torch.float64)


def sliced(sub: SubModel) -> PeftModel:
    """The sliced base with the sliced adapter."""
    with scratch() as directory:
        slice_adapter(trained(), directory / "adapter", sub, CONFIG)
        return load_adapter(slice_module(base(), sub), directory / "adapter", trainable=True).double()


@given(spec=specs(TINY_TEXT))
@settings(max_examples=6)
def test_the_forward_pass_of_a_spec_is_that_of_the_sliced_base_and_adapter(spec: SliceSpec) -> None:
    with torch.no_grad(), in_float64():
        assert_close(parent()(INPUTS, spec=spec).logits, sliced(SubModel(spec))(INPUTS).logits)


@given(spec=specs(TINY_TEXT))
@settings(max_examples=5)
def test_factors_get_the_sliced_adapters_gradients_and_what_is_cut_of_them_none(spec: SliceSpec) -> None:
    small = sliced(SubModel(spec))
    with in_float64():
        ours = factor_gradients(backward_of(parent(), parent()(INPUTS, spec=spec).logits))
        expected = factor_gradients(backward_of(small, small(INPUTS).logits))
    placements = slice_tensors(ours, SubModel(spec), TINY_TEXT)
    kept = {placement.name: take(placement, ours[name]) for name, placement in placements.items()}
    assert kept.keys() == expected.keys()
    for name, gradient in kept.items():
        assert_close(gradient, expected[name], name)
    entries_with_gradient = (sum(int(gradient.count_nonzero()) for gradient in some.values()) for some in (ours, kept))
    assert next(entries_with_gradient) == next(entries_with_gradient), "entries that are cut got a gradient"


def factor_gradients(gradients: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Gradients of the factors that got one, named as in a file."""
    return {name.replace(".default", ""): grad for name, grad in gradients.items() if grad is not None}


@given(sub=sub_models(CONFIG))
@settings(max_examples=10)
def test_slicing_commutes_with_merging_an_adapter(sub: SubModel) -> None:
    merged_then_sliced = weights(slice_module(merged_parent(), sub))
    sliced_then_merged = weights(merge(sliced(sub)))
    assert merged_then_sliced.keys() == sliced_then_merged.keys()
    for name, tensor in sliced_then_merged.items():
        # B @ A of fewer rows may be summed in another order.
        torch.testing.assert_close(tensor, merged_then_sliced[name], rtol=1e-12, atol=1e-12)


@cache
def merged_parent() -> Gemma3n:
    return merge(load_adapter(tiny_model(CONFIG, dtype=torch.float64), trained()).double())


@given(data=st.data())
@settings(max_examples=10)
def test_slicing_an_adapter_twice_is_slicing_it_once_by_the_composed_description(data: st.DataObject) -> None:
    first = data.draw(sub_models(CONFIG))
    middle = slice_config(CONFIG, first)
    second = data.draw(sub_models(middle))
    with scratch() as directory:
        slice_adapter(trained(), directory / "first", first, CONFIG)
        slice_adapter(directory / "first", directory / "twice", second, middle)
        slice_adapter(trained(), directory / "once", first.then(second), CONFIG)
        twice, once = (load_file(directory / kind / ADAPTER_WEIGHTS_FILE) for kind in ("twice", "once"))
        configs = [json.loads((directory / kind / ADAPTER_CONFIG_FILE).read_text()) for kind in ("twice", "once")]
    assert_same_tensors(twice, once)
    assert configs[0] == configs[1]


def test_the_full_spec_changes_nothing_of_an_adapter() -> None:
    with scratch() as directory:
        slice_adapter(trained(), directory / "full", SubModel(SliceSpec.full(TINY_TEXT)), CONFIG)
        assert_same_tensors(
            load_file(directory / "full" / ADAPTER_WEIGHTS_FILE), load_file(trained() / ADAPTER_WEIGHTS_FILE)
        )
