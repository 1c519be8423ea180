# SPDX-License-Identifier: Apache-2.0
"""Both ways to press scores give the differences of scores, and the slopes, of the model's formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.softcap import SoftCap

GENERATOR = torch.Generator().manual_seed(0)
HIDDEN, HEAD = torch.randn(5, 8, generator=GENERATOR), torch.randn(301, 8, generator=GENERATOR) * 8


def pressed_by(cap: SoftCap) -> Tensor:
    """The curve's values of all products."""
    out = torch.empty(5, 301)
    cap.press(HIDDEN, HEAD, out=out)
    return out


@pytest.mark.parametrize("by_sigmoid", [True, False])
@pytest.mark.parametrize("cap", [5.0, 30.0])
def test_powers_and_slopes_are_those_of_the_hyperbolic_tangent(cap: float, *, by_sigmoid: bool) -> None:
    products = HIDDEN.double() @ HEAD.double().T
    exact = cap * torch.tanh(products / cap)
    slopes = 1 - (exact / cap).square()
    way = SoftCap(cap, by_sigmoid=by_sigmoid)
    pressed, powers = pressed_by(way), torch.empty(5, 301)
    top = way.scores(pressed.amax(dim=1))
    way.powers(pressed, top, out=powers)
    expected = torch.exp(exact - exact.amax(dim=1, keepdim=True))
    torch.testing.assert_close(powers.double(), expected, rtol=2e-5, atol=1e-12)
    torch.testing.assert_close(way.slope(pressed[0]).double(), slopes[0], rtol=1e-4, atol=1e-6)
    way.dampen(powers, pressed)
    torch.testing.assert_close(powers.double() * way.steepness, expected * slopes, rtol=1e-4, atol=1e-6)


def test_a_model_in_float32_is_pressed_by_a_sigmoid_and_others_as_they_round() -> None:
    assert SoftCap.of(30.0, torch.float32).by_sigmoid
    assert not SoftCap.of(30.0, torch.bfloat16).by_sigmoid
