# SPDX-License-Identifier: Apache-2.0
"""Soft tokens and every gradient of the vision tower, against timm on the same random weights.

In float32 at the figures we promise, and in float64, where only a difference in the mathematics is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from timm.layers import RmsNorm2d
from torch import Tensor, nn
from transformers import AutoModel, Gemma3nVisionConfig

from model.vision.blocks import NORM_EPS
from model.vision.norm import ChannelNorm
from model.vision.tower import VisionTower
from tests.model.vision.tiny import FULL, TINY, pictures, vision_config, vision_tower
from tests.parity.reference import relative
from tests.parity.timm_shim import register_tiny_tower

pytestmark = pytest.mark.parity

register_tiny_tower()

# Even and odd, of the grid's multiples and not, not square, and smaller than the grid itself.
SIZES = [(64, 64), (65, 65), (96, 96), (97, 63), (48, 48), (128, 64), (17, 5), (33, 200)]


class Reference(nn.Module):
    """The tower as transformers makes it, with timm's encoder, computing with our very parameters' values."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        config = tower.config
        published = Gemma3nVisionConfig(architecture=config.architecture, hidden_size=config.hidden_size)
        with torch.device("meta"):
            self.tower = AutoModel.from_config(published)
        shared = {name: parameter.detach() for name, parameter in tower.named_parameters()}
        self.tower.load_state_dict(shared, strict=True, assign=True)
        self.tower.requires_grad_(requires_grad=True).train()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels, do_pooling=False).last_hidden_state.flatten(2).transpose(1, 2)


@dataclass
class Result:
    tokens: Tensor
    gradients: dict[str, Tensor]  # of the pixels and of every parameter


def result(tower: nn.Module, pixels: Tensor) -> Result:
    pixels = pixels.clone().requires_grad_()
    tokens = tower(pixels)
    direction = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1)).to(tokens.dtype)
    tokens.backward(direction)
    gradients = {name.removeprefix("tower."): p.grad for name, p in tower.named_parameters()}
    gradients["pixels"] = pixels.grad
    tower.zero_grad()
    return Result(tokens.detach(), {name: gradient for name, gradient in gradients.items() if gradient is not None})


def assert_equal(tower: VisionTower, pixels: Tensor, tolerance: float) -> None:
    ours, theirs = result(tower, pixels), result(Reference(tower), pixels)
    assert theirs.gradients.keys() == {"pixels", *dict(tower.named_parameters())}
    assert ours.gradients.keys() == theirs.gradients.keys()
    assert ours.tokens.shape == theirs.tokens.shape
    assert relative(ours.tokens, theirs.tokens) <= tolerance
    worst = {name: relative(ours.gradients[name], theirs.gradients[name]) for name in theirs.gradients}
    assert max(worst.values()) <= tolerance, max(worst.items(), key=lambda item: item[1])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_soft_tokens_and_all_gradients_equal_the_reference(size: tuple[int, int]) -> None:
    assert_equal(vision_tower(), pictures(*size, count=3), 2e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_in_float64_nothing_differs_but_the_last_digits(size: tuple[int, int]) -> None:
    assert_equal(vision_tower().double(), pictures(*size, count=2).double(), 1e-10)


@pytest.mark.parametrize("channels_last", [False, True])
def test_norms_round_to_bfloat16_wherever_the_reference_does(channels_last: bool) -> None:  # noqa: FBT001
    x = torch.randn(2, 40, 9, 7, generator=torch.Generator().manual_seed(0)).mul(30).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    ours, theirs = ChannelNorm(40, NORM_EPS).to(torch.bfloat16), RmsNorm2d(40).to(torch.bfloat16)
    weight = torch.rand(40, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    ours.weight.data, theirs.weight.data = weight, weight
    assert torch.equal(ours(x), theirs(x))


def test_bfloat16_errs_hardly_more_than_the_reference() -> None:
    pixels = pictures(64, 64, count=8)
    exact_tower, low_tower = vision_tower(), vision_tower().to(torch.bfloat16)
    with torch.no_grad():
        exact, ours = exact_tower(pixels), low_tower(pixels)
        theirs = Reference(low_tower)(pixels.to(torch.bfloat16))
    assert (ours - exact).norm() <= 1.1 * (theirs - exact).norm()


@pytest.mark.parametrize("name", [FULL, TINY])
def test_names_and_shapes_are_the_references(name: str) -> None:
    with torch.device("meta"):
        tower = VisionTower(vision_config(name))
        reference = AutoModel.from_config(Gemma3nVisionConfig(architecture=name))
    theirs = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in tower.state_dict().items()} == theirs


def test_the_full_architecture_makes_the_references_soft_tokens_of_a_small_picture() -> None:
    tower, pixels = vision_tower(FULL), pictures(64, 64, count=1)
    with torch.no_grad():
        assert relative(tower(pixels), Reference(tower)(pixels)) <= 2e-5


@pytest.mark.slow
def test_the_full_architecture_equals_the_reference_in_all_gradients() -> None:
    assert_equal(vision_tower(FULL), pictures(256, 256, count=1), 2e-5)


@pytest.mark.slow
def test_the_full_architecture_equals_the_reference_in_float64() -> None:
    assert_equal(vision_tower(FULL).double(), pictures(97, 64, count=1).double(), 1e-10)
