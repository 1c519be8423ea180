# SPDX-License-Identifier: Apache-2.0
"""Sub-models as live models."""

from __future__ import annotations

import pytest
import torch

from model.adapter.lora import AdapterConfig, attach
from model.errors import CheckpointError
from model.recompute import RecomputeConfig
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT, tiny_model

SPEC = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)


def test_a_sliced_model_shares_no_memory_with_its_parent() -> None:
    parent = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in parent.named_parameters()}
    with torch.no_grad():
        for parameter in slice_module(parent, SubModel(SPEC)).parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parent.named_parameters())


def test_a_sliced_model_keeps_dtype_mode_recomputation_and_what_is_frozen() -> None:
    parent = tiny_model(dtype=torch.bfloat16).eval()
    parent.recompute = RecomputeConfig.everything()
    parent.model.language_model.norm.requires_grad_(False)
    small = slice_module(parent, SubModel(SPEC))
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert not small.training
    assert small.recompute == RecomputeConfig.everything()
    assert [name for name, parameter in small.named_parameters() if not parameter.requires_grad] == [
        "model.language_model.norm.weight"
    ]


def test_a_model_with_an_adapter_is_not_sliced_as_if_it_had_none() -> None:
    adapted = tiny_model()
    attach(adapted, AdapterConfig(rank=2, alpha=2))
    with pytest.raises(CheckpointError, match=r"slice 'small'.*merge it first"):
        slice_module(adapted, SubModel(SPEC))
