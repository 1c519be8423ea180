# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from model.vision.fusion import MultiScaleFusion, to_grid
from model.vision.stages import architecture
from tests.model.vision.tiny import TINY


def test_a_multiple_of_the_grid_becomes_means_of_patches() -> None:
    maps = torch.arange(32.0).reshape(1, 1, 4, 8)
    assert torch.equal(to_grid(maps, 2)[0, 0], torch.tensor([[5.5, 9.5], [21.5, 25.5]]))


def test_any_other_size_is_interpolated_to_the_grid() -> None:
    ramp = torch.arange(6.0).expand(1, 1, 3, 6)
    # Middles of the cells: of three, at 0.75 of a cell from either end; of six, at one.
    torch.testing.assert_close(to_grid(ramp, 4)[0, 0, 0], torch.tensor([0.25, 1.75, 3.25, 4.75]))


def test_a_coarser_stage_is_repeated_to_the_finer_ones_size() -> None:
    fusion = MultiScaleFusion(architecture(TINY))
    finest, coarser = torch.randn(1, 24, 8, 8), torch.randn(1, 32, 4, 4)
    repeated = coarser.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(fusion(finest, coarser), fusion(finest, repeated))
