# SPDX-License-Identifier: Apache-2.0
"""The audio tower's soft tokens and every gradient, against transformers on the same random weights.

One clip at a time: with several, the reference's convolutions read one clip's padding. Once in float32
at the figures we promise, and once with both computing in float64, where only a difference in the
mathematics is left.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.gemma3n import modeling_gemma3n
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nAudioConfig

from model.audio.tower import AudioTower
from model.tower_config import AudioConfig
from tests.model.audio.towers import random_clip, random_tower, tiny_audio
from tests.parity.reference import default_dtype

pytestmark = pytest.mark.parity

LENGTHS = [1, 5, 13, 47, 97, 131, 300]  # frames
SHAPES = {
    "tiny": tiny_audio(),
    "every_frame": tiny_audio(conf_reduction_factor=1),
    "looking_ahead": tiny_audio(
        conf_reduction_factor=3, conf_attention_chunk_size=5, conf_attention_context_left=4,
        conf_attention_context_right=7,
    ),
    "alone": tiny_audio(conf_attention_context_left=1, conf_conv_kernel_size=1, conf_num_attention_heads=1),
    "far_past": tiny_audio(conf_attention_chunk_size=2, conf_attention_context_left=9, conf_conv_kernel_size=4),
    # In float32 two layers: in a third, attention is so sure that its gradients are mostly rounding.
    "other_convolutions": tiny_audio(
        conf_num_hidden_layers=2, conf_reduction_factor=2, input_feat_size=13, sscp_conv_channel_size=(3, 5),
        sscp_conv_kernel_size=((5, 4), (2, 3)), sscp_conv_stride_size=((3, 1), (1, 2)),
    ),
    "other_numbers": tiny_audio(
        gradient_clipping=1.5, conf_attention_logit_cap=0.7, conf_residual_weight=0.3, rms_norm_eps=0.1,
        sscp_conv_group_norm_eps=0.2,
    ),
}  # fmt: skip


@dataclass
class Result:
    features: Tensor
    real: Tensor
    gradients: dict[str, Tensor]  # of every parameter, and of the frames


def reference_of(tower: AudioTower) -> modeling_gemma3n.Gemma3nAudioEncoder:
    """The reference with our weights, all of them."""
    published: dict[str, Any] = tower.config.publish()
    del published["model_type"]
    with default_dtype(next(tower.parameters()).dtype):
        reference = modeling_gemma3n.Gemma3nAudioEncoder(Gemma3nAudioConfig(**published))
    reference.load_state_dict(tower.state_dict(), strict=True)
    return reference.eval()


def backward(module: torch.nn.Module, features: Tensor, frames: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    (features * torch.randn(features.shape, generator=generator)).sum().backward()
    leaves = {**dict(module.named_parameters()), "frames": frames}
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def both(tower: AudioTower, clip: Tensor) -> tuple[Result, Result]:
    """Our result and theirs for one clip."""
    real = torch.ones(1, len(clip), dtype=torch.bool)
    frames = clip[None].requires_grad_()
    soft = tower(frames, real)
    ours = Result(soft.features.detach(), soft.mask, backward(tower, soft.features, frames))
    frames = clip[None].detach().clone().requires_grad_()
    reference = reference_of(tower)
    output = reference(frames, ~real)
    theirs = Result(
        output.last_hidden_state.detach(),
        ~output.audio_mel_mask,
        backward(reference, output.last_hidden_state, frames),
    )
    return ours, theirs


def assert_equal_up_to(share: float, ours: Result, theirs: Result) -> None:
    """Every tensor within ``share`` of its largest value; what is zero there (a frame alone) must be zero here."""
    assert torch.equal(ours.real, theirs.real)
    assert ours.gradients.keys() == theirs.gradients.keys()
    pairs = {"features": (ours.features, theirs.features)}
    pairs |= {name: (ours.gradients[name], theirs.gradients[name]) for name in theirs.gradients}
    apart = {
        name: ((mine - other).abs().max().item(), other.abs().max().item())
        for name, (mine, other) in pairs.items()
        if not (mine - other).abs().max() <= share * other.abs().max()
    }
    assert apart == {}  # name: largest difference, largest value


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_soft_tokens_and_all_gradients_equal_the_reference(shape: str, frames: int) -> None:
    tower = random_tower(SHAPES[shape])
    ours, theirs = both(tower, random_clip(SHAPES[shape], frames))
    assert len(theirs.gradients) == len(list(tower.parameters())) + 1
    assert_equal_up_to(2e-5, ours, theirs)


@pytest.mark.parametrize("frames", [1, 13, 97, 131])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float64_nothing_differs_but_the_last_digits(
    shape: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the float32 islands of both, widened
    monkeypatch.setattr(modeling_gemma3n, "torch", WidenedTorch())
    config = dataclasses.replace(SHAPES[shape], conf_num_hidden_layers=3)
    tower = random_tower(config, dtype=torch.float64)
    assert_equal_up_to(1e-10, *both(tower, random_clip(config, frames).double()))


class WidenedTorch:
    """torch as the reference sees it, float32 being float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize("frames", [61, 250])
def test_bfloat16_errs_at_most_twice_as_much_as_the_reference(frames: int) -> None:
    exact_tower, tower = random_tower(tiny_audio()), random_tower(tiny_audio(), dtype=torch.bfloat16)
    clip = random_clip(tiny_audio(), frames)[None]
    real = torch.ones(1, frames, dtype=torch.bool)
    with torch.no_grad():
        exact = exact_tower(clip, real).features
        ours = tower(clip, real).features.float()
        theirs = reference_of(tower)(clip, ~real).last_hidden_state.float()
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm()


@pytest.mark.slow
@pytest.mark.parametrize("frames", [203])
def test_two_layers_of_the_published_size_equal_the_reference(frames: int) -> None:
    config = AudioConfig(conf_num_hidden_layers=2)
    assert_equal_up_to(2e-5, *both(random_tower(config), random_clip(config, frames)))


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        ours, theirs = AudioTower(AudioConfig()), modeling_gemma3n.Gemma3nAudioEncoder(Gemma3nAudioConfig())
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert sum(parameter.numel() for parameter in ours.parameters()) == 681_348_640
