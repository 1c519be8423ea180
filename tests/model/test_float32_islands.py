# SPDX-License-Identifier: Apache-2.0
"""What a bfloat16 model computes in float32 all the same: norms, the router's tanh, angles, the audio's softmax."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.layers.norm import RMSNorm, rms_norm
from model.layers.rotary import Rotary
from tests.tiny import tiny_inputs, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

BF16, FP32 = torch.bfloat16, torch.float32


class Kinds(TorchDispatchMode):
    """Which kinds of fractions each operation was given, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.name().partition(".")[0].removeprefix("aten::")
        if name == "pow":  # squares, too, of which some are not in a norm
            name = f"pow {args[1]}"
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
        self.seen[name] |= {x.dtype for x in given}
        return func(*args, **(kwargs or {}))


def kinds_of(compute: Callable[[], object]) -> dict[str, set[torch.dtype]]:
    with torch.no_grad(), Kinds() as kinds:
        compute()
    return kinds.seen


def test_the_decoder_s_norms_router_and_angles_are_float32_and_its_products_are_not() -> None:
    model = tiny_model(dtype=BF16)
    inputs = tiny_inputs(model.config)
    kinds = kinds_of(lambda: model.hidden(inputs))
    for island in ("pow -0.5", "tanh", "cos", "sin"):  # norms; the router (not GELU, an operation of its own); angles
        assert kinds[island] == {FP32}, island
    assert kinds["mm"] == {BF16}
    assert kinds["gelu"] == {BF16}


def test_the_audio_tower_s_softmax_is_float32() -> None:
    config = tiny_multimodal_config()
    model = tiny_model(config, dtype=BF16)
    audio: Any = tiny_multimodal_inputs(config, "audio").audio
    kinds = kinds_of(lambda: model.model.hear(audio))
    assert kinds["_softmax"] == {FP32}
    assert kinds["mm"] == {BF16}


@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])
def test_a_norm_is_rounded_once(size: float) -> None:
    x = (torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) * size).to(BF16)
    norm = RMSNorm(48, 1e-6).to(BF16)
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(1))
    exact = rms_norm(x.float(), 1e-6, norm.weight.float())
    assert torch.equal(norm(x), exact.to(BF16))
    root = x.square().mean(-1, keepdim=True).sqrt()  # what it would be otherwise
    assert not torch.equal(x / root * norm.weight, exact.to(BF16))


def test_no_cast_of_the_model_touches_the_angles() -> None:
    places = torch.tensor([[0, 1, 511, 4095, 32_767]])
    low = Rotary.at(places, head_dim=256, base=1e6, dtype=BF16)
    exact = Rotary.at(places, head_dim=256, base=1e6, dtype=FP32)
    assert torch.equal(low.cos, exact.cos.to(BF16))
    assert torch.equal(low.sin, exact.sin.to(BF16))
    assert [name for name, _ in tiny_model().named_buffers()] == []  # nothing there to be cast
