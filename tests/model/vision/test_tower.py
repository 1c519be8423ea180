# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from model.errors import ConfigError
from model.tower_config import MediaTokens
from model.vision.tower import VisionTower
from tests.model.vision.tiny import FULL, TINY, pictures, vision_config, vision_tower


def steps(tower: VisionTower) -> list[nn.Module]:
    """Everything that can be computed again on its own."""
    encoder = tower.timm_model
    blocks = [block for stage in encoder.blocks for block in stage.children()]
    return [encoder.conv_stem, *blocks, encoder.msfa]


def gradients(tower: VisionTower, pixels: Tensor) -> dict[str, Tensor]:
    pixels = pixels.clone().requires_grad_()
    tower(pixels).square().sum().backward()
    found = {name: p.grad for name, p in tower.named_parameters()} | {"pixels": pixels.grad}
    tower.zero_grad()
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("size", [(64, 64), (65, 65), (32, 96), (1, 1)])
def test_a_picture_of_any_size_becomes_the_same_number_of_soft_tokens(size: tuple[int, int]) -> None:
    assert vision_tower()(pictures(*size, count=3)).shape == (3, 16, 64)


def test_soft_tokens_lie_row_after_row() -> None:
    tower, pixels = vision_tower(), pictures(64, 64)
    maps = tower.timm_model(pixels, recompute=False)
    torch.testing.assert_close(tower(pixels)[:, 5], maps[:, :, 1, 1])  # layouts in memory differ, and so rounding


def test_soft_tokens_do_not_depend_on_the_other_pictures() -> None:
    tower, pixels = vision_tower(), pictures(64, 64, count=5)
    alone = torch.cat([tower(picture) for picture in pixels.split(1)])
    torch.testing.assert_close(tower(pixels), alone, rtol=1e-5, atol=1e-5)


def test_a_tower_computes_in_the_dtype_of_its_weights() -> None:
    assert vision_tower().to(torch.bfloat16)(pictures(64, 64)).dtype == torch.bfloat16


def test_the_full_architecture_has_as_many_parameters_as_were_published() -> None:
    with torch.device("meta"):
        tower = VisionTower(vision_config(FULL))
    assert sum(parameter.numel() for parameter in tower.parameters()) == 294_126_912


def test_another_width_than_the_architectures_is_refused() -> None:
    config = dataclasses.replace(vision_config(), hidden_size=2048)
    with pytest.raises(ConfigError, match="hidden_size is 2048, but mobilenetv5_tiny_enc puts out 64 channels"):
        VisionTower(config)


def test_another_number_of_soft_tokens_than_the_architectures_is_refused() -> None:
    tokens = MediaTokens(placeholder_id=262_145, begin_id=255_999, end_id=262_144, per_item=256)
    with pytest.raises(ConfigError, match=r"per_image is 256, but mobilenetv5_tiny_enc makes 4 × 4 soft tokens"):
        VisionTower(dataclasses.replace(vision_config(TINY), tokens=tokens))


@pytest.mark.parametrize("size", [(64, 64), (97, 63)])
def test_recomputing_gives_the_same_gradients_to_the_last_bit(size: tuple[int, int]) -> None:
    tower, pixels = vision_tower(), pictures(*size)
    kept = gradients(tower, pixels)
    tower.recompute = True
    again = gradients(tower, pixels)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize(("recompute", "times"), [(False, 1), (True, 2)])
def test_recomputing_reaches_every_block(recompute: bool, times: int) -> None:  # noqa: FBT001
    tower = vision_tower()
    tower.recompute = recompute
    calls = dict.fromkeys(steps(tower), 0)

    def count(module: nn.Module, _: object) -> None:
        calls[module] += 1

    for step in calls:
        step.register_forward_pre_hook(count)
    tower(pictures(64, 64)).sum().backward()
    assert set(calls.values()) == {times}
    assert len(calls) == 2 + sum(len(stage) for stage in tower.timm_model.blocks)  # pyright: ignore[reportArgumentType]


def test_recomputing_keeps_nothing_of_a_block_but_its_input() -> None:
    def kept(*, recompute: bool) -> list[Tensor]:
        tower, saved = vision_tower(), []
        tower.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            tower(pictures(64, 64))
        return saved

    without, inputs = kept(recompute=False), kept(recompute=True)
    assert len(inputs) == len(steps(vision_tower())) + 1  # the fusion has two
    assert sum(x.numel() for x in inputs) * 8 < sum(x.numel() for x in without)


def test_without_gradients_nothing_is_recomputed_or_kept() -> None:
    tower = vision_tower()
    tower.recompute = True
    with torch.no_grad():
        tokens = tower(pictures(64, 64))
    assert tokens.grad_fn is None
