# SPDX-License-Identifier: Apache-2.0
"""Shapes read from the table are those of the tower built from it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.errors import ConfigError
from model.tower_config import VisionConfig
from model.vision.fusion import MultiScaleFusion
from model.vision.shapes import block_shapes, vision_shapes
from model.vision.stages import ARCHITECTURES, AttentionRow, BottleneckRow, EdgeRow, Row, architecture
from model.vision.tower import VisionTower, block
from tests.model.vision.tiny import FULL, TINY, vision_config

SMALL, KERNELS, STRIDES = st.integers(1, 12), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3)
ROWS = st.one_of(
    st.builds(EdgeRow, channels=SMALL, stride=STRIDES, kernel=KERNELS, expansion=SMALL),
    st.builds(
        BottleneckRow,
        channels=SMALL,
        stride=STRIDES,
        start_kernel=st.just(0) | KERNELS,
        mid_kernel=st.just(0) | KERNELS,
        expansion=SMALL,
    ),
    st.builds(AttentionRow, channels=SMALL, heads=SMALL, head_dim=SMALL, kv_stride=STRIDES, kernel=KERNELS),
)


def built(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_of_every_architecture_are_those_of_the_built_tower(name: str) -> None:
    with torch.device("meta"):
        tower = VisionTower(vision_config(name))
    assert vision_shapes(vision_config(name)) == built(tower)
    assert vision_shapes(vision_config(name)).keys() == tower.state_dict().keys()  # nothing else is saved


@given(ins=SMALL, row=ROWS)
def test_shapes_of_any_row_are_those_of_its_block(ins: int, row: Row) -> None:
    with torch.device("meta"):
        assert block_shapes(ins, row) == built(block(ins, row))


@given(fused_channels=SMALL, expansion=SMALL)
def test_shapes_of_any_fusion_are_those_of_the_built_one(fused_channels: int, expansion: int) -> None:
    table = dataclasses.replace(architecture(TINY), fused_channels=fused_channels, fusion_expansion=expansion)
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setitem(ARCHITECTURES, TINY, table)
        prefix = "timm_model.msfa."
        shapes = vision_shapes(vision_config(TINY)).items()
        ours = {name.removeprefix(prefix): shape for name, shape in shapes if name.startswith(prefix)}
        assert ours == built(MultiScaleFusion(table))


def test_shapes_of_the_published_tower_hold_as_many_numbers_as_were_published() -> None:
    assert VisionConfig().architecture == FULL
    assert sum(map(prod, vision_shapes(VisionConfig()).values())) == 294_126_912


def test_a_config_that_no_tower_can_be_built_of_has_no_shapes() -> None:
    with pytest.raises(ConfigError, match="hidden_size is 100, but mobilenetv5_300m_enc puts out 2048 channels"):
        vision_shapes(VisionConfig(hidden_size=100))


@pytest.mark.parametrize("module", ["stages", "shapes", "layout"])
def test_what_is_known_of_the_tower_without_building_it_does_not_need_torch(module: str) -> None:
    program = f"import sys, model.vision.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
