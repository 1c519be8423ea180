# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from model.errors import ConfigError
from model.vision.stages import ARCHITECTURES, AttentionRow, BottleneckRow, EdgeRow, architecture
from tests.model.vision.tiny import FULL, TINY


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"'resnet50'; known are mobilenetv5_300m_enc, mobilenetv5_tiny_enc"):
        architecture("resnet50")


def test_soft_tokens_are_a_square_grid_of_the_published_size() -> None:
    assert architecture(FULL).soft_tokens == 256
    assert architecture(TINY).soft_tokens == 16


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_stage_halves_the_picture_once_at_its_first_block(name: str) -> None:
    for stage in architecture(name).stages:
        first, *others = stage
        assert not isinstance(first, AttentionRow)
        assert first.stride == 2
        assert all(isinstance(row, AttentionRow) or row.stride == 1 for row in others)
        assert len({row.channels for row in stage}) == 1


def test_the_tiny_tower_has_every_kind_of_block_of_the_large_one() -> None:
    def kinds(name: str) -> set[tuple]:
        found: set[tuple] = set()
        for row in (row for stage in architecture(name).stages for row in stage):
            if isinstance(row, BottleneckRow):
                found.add((BottleneckRow, row.stride, bool(row.start_kernel), bool(row.mid_kernel)))
            elif isinstance(row, AttentionRow):
                found.add((AttentionRow, row.kv_stride))
            else:
                found.add((EdgeRow, row.stride))
        return found

    assert kinds(TINY) == kinds(FULL)
