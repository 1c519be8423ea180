# SPDX-License-Identifier: Apache-2.0
"""What is counted from names and shapes is what a sub-model of the published E4B has when it is built."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.slicing.config import slice_config
from model.slicing.count import Layout, count_parameters
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from tests.laws.drawn import specs

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
E4B = ModelConfig(text=TextConfig.parse({}))  # towers are not cut by a spec; building them would take twice as long


def assert_counted_as_built(spec: SliceSpec) -> None:
    sub = SubModel(spec)
    counted = count_parameters(model_shapes(E4B, Layout.used).items(), sub, E4B.text)
    built = Gemma3n.build(slice_config(E4B, sub), device="meta")
    assert counted == sum(parameter.numel() for parameter in built.parameters())


@given(spec=specs(E4B.text))
@settings(max_examples=15)
def test_as_many_parameters_of_a_part_of_e4b_are_counted_as_are_built(spec: SliceSpec) -> None:
    assert_counted_as_built(spec)


@pytest.mark.slow
@given(spec=specs(E4B.text))
@settings(max_examples=200)
def test_as_many_parameters_of_any_part_of_e4b_are_counted_as_are_built(spec: SliceSpec) -> None:
    assert_counted_as_built(spec)
