# SPDX-License-Identifier: Apache-2.0
"""What is counted from names and shapes is what a sub-model of the published E4B has when it is built."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.slicing.config import slice_config
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import SliceRow, published_rows, published_slices
from model.tower_config import AudioConfig, VisionConfig
from tests.laws.drawn import specs, sub_models

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly

TEXT = ModelConfig(text=TextConfig.parse({}))  # towers are not cut by a spec; building them takes twice as long
E4B = ModelConfig(text=TEXT.text, vision=VisionConfig(), audio=AudioConfig())
# E4B's sizes written out. Heads: 8 of queries, 2 of keys and values, of 256 each; per-layer embeddings of 256.
DIM, STREAMS = 2_048, 4
ATTENTION = 2 * DIM * 2_048 + 2 * DIM * 512 + 2 * 256  # queries and outputs, keys and values, norms
LAUREL = 2 * DIM * 64 + DIM
ALTUP = STREAMS * STREAMS + STREAMS**2 * STREAMS + STREAMS * DIM + 2 * DIM
PER_LAYER = ATTENTION + LAUREL + ALTUP + 4 * DIM + 2 * DIM * 256 + DIM  # four norms; the per-layer gate
PROJECTIONS = 2 * (STREAMS - 1) * DIM * DIM  # into AltUp's streams and out of them
GOOGLES_ROUNDING = 0.025e9  # the table's sizes are up to 0.02 billion off, and a wider layer is 0.05 billion


def assert_counted_as_built(sub: SubModel, config: ModelConfig = TEXT) -> None:
    counted = count_parameters(model_shapes(config, Layout.used).items(), sub, config.text)
    built = Gemma3n.build(slice_config(config, sub), device="meta")
    assert counted == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("row", published_rows(), ids=lambda row: row.written.name)
def test_as_many_parameters_of_googles_slices_are_counted_as_are_built_and_were_published(row: SliceRow) -> None:
    sub, widths = SubModel(SliceSpec.resolve(row.written, TEXT.text)), row.written.ffn_widths
    assert_counted_as_built(sub)
    effective = count_effective_parameters(text_shapes(TEXT.text, Layout.published).items(), sub, TEXT.text)
    assert effective == PROJECTIONS + DIM + 256 + sum(PER_LAYER + 256 * DIM + 3 * DIM * width for width in widths)
    assert abs(effective - 1e9 * float(row.size)) < GOOGLES_ROUNDING


def test_e2b_has_the_effective_parameters_that_googles_notebook_prints() -> None:
    written = published_slices()["Config for official E2B Model"]
    sub = SubModel(SliceSpec.resolve(written, TEXT.text))
    effective = count_effective_parameters(text_shapes(TEXT.text, Layout.published).items(), sub, TEXT.text)
    assert effective == 1_905_495_648


@given(spec=specs(TEXT.text))
@settings(max_examples=12)
def test_as_many_parameters_of_a_part_of_e4b_are_counted_as_are_built(spec: SliceSpec) -> None:
    assert_counted_as_built(SubModel(spec))


@pytest.mark.slow
@given(spec=specs(TEXT.text))
@settings(max_examples=200)
def test_as_many_parameters_of_any_part_of_e4b_are_counted_as_are_built(spec: SliceSpec) -> None:
    assert_counted_as_built(SubModel(spec))


@pytest.mark.slow
@given(sub=sub_models(E4B))
@settings(max_examples=40)
def test_as_many_parameters_are_counted_as_are_built_whatever_is_cut_beside_the_decoder(sub: SubModel) -> None:
    assert_counted_as_built(sub, E4B)
