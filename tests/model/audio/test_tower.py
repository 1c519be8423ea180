# SPDX-License-Identifier: Apache-2.0
"""A clip's soft tokens are its own: batch-mates, padding and recomputation change neither them nor a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.audio.subsample import CumulativeGroupNorm
from model.audio.tower import AudioTower
from model.errors import ConfigError, InputError
from model.inputs import Audio
from model.tower_config import AudioConfig
from tests.model.audio.towers import random_clip, random_tower, tiny_audio

LENGTHS = (131, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 48, 97, 190, 203, 301)  # frames of 16 clips
SHAPES = {
    "tiny": tiny_audio(),
    "every_frame": tiny_audio(conf_reduction_factor=1),
    "looking_ahead": tiny_audio(conf_reduction_factor=2, conf_attention_context_right=5),
    "other_strides": tiny_audio(
        sscp_conv_kernel_size=((5, 3), (4, 3)), sscp_conv_stride_size=((3, 2), (1, 2)), conf_reduction_factor=1
    ),
}


def clips_of(config: AudioConfig, lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    return [random_clip(config, frames) for frames in lengths]


def alone(tower: AudioTower, clip: Tensor) -> Tensor:
    """Soft tokens of one clip without padding."""
    soft = tower(clip[None], torch.ones(1, len(clip), dtype=torch.bool))
    assert soft.mask.all()
    return soft.features[0]


def gradients(tower: AudioTower, total: Tensor) -> dict[str, Tensor]:
    tower.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_of_16_clips_has_the_same_soft_tokens_alone_and_in_a_batch(shape: str) -> None:
    tower, clips = random_tower(SHAPES[shape]), clips_of(SHAPES[shape])
    audio = Audio.of(clips)
    with torch.no_grad():
        together = tower(audio.frames, audio.mask)
        for clip, features, real in zip(clips, together.features, together.mask, strict=True):
            expected = alone(tower, clip)
            assert real.tolist() == [True] * len(expected) + [False] * (len(real) - len(expected))
            assert (features[real] - expected).abs().max() <= 1e-5
            assert (features[~real] == 0.0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_a_batch_are_the_sum_of_its_clips_gradients(shape: str) -> None:
    tower, clips = random_tower(SHAPES[shape]), clips_of(SHAPES[shape])
    audio = Audio.of(clips)
    together = gradients(tower, tower(audio.frames, audio.mask).features.sin().sum())
    apart = gradients(tower, torch.stack([alone(tower, clip).sin().sum() for clip in clips]).sum())
    assert together.keys() == apart.keys() == dict(tower.named_parameters()).keys()
    for name, gradient in apart.items():  # sums in another order
        assert (together[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name


@pytest.mark.parametrize("shape", SHAPES)
def test_neither_the_amount_of_padding_nor_what_stands_in_it_matters(shape: str) -> None:
    tower = random_tower(SHAPES[shape])
    with torch.no_grad():
        for frames in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 31, 49):
            clip = random_clip(SHAPES[shape], frames)
            expected = alone(tower, clip)
            for padding, content in ((1, math.nan), (2, -11.5), (3, math.inf), (70, 1e30)):
                padded = F.pad(clip, (0, 0, 0, padding), value=content)[None]
                soft = tower(padded, torch.arange(frames + padding)[None] < frames)
                assert soft.mask.sum() == len(expected)
                assert soft.features.isfinite().all()
                assert (soft.features[soft.mask] - expected).abs().max() <= 1e-5


def test_padding_gets_no_gradient_and_spoils_none() -> None:
    config = SHAPES["every_frame"]  # otherwise the last vectors of most clips are left out, by nobody heard
    tower, audio = random_tower(config), Audio.of(clips_of(config))
    frames = audio.frames.masked_fill(~audio.mask[..., None], math.nan).requires_grad_()
    found = gradients(tower, tower(frames, audio.mask).features.square().sum())
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert frames.grad is not None
    assert (frames.grad[~audio.mask] == 0.0).all()
    assert (frames.grad[audio.mask] != 0.0).any(-1).all()


def test_a_clip_without_real_frames_has_no_soft_tokens_and_disturbs_nobody() -> None:
    tower = random_tower(tiny_audio())
    clip = random_clip(tiny_audio(), 50)
    frames = torch.stack((torch.full_like(clip, math.nan), clip))
    mask = torch.tensor([False, True])[:, None].expand(2, 50)
    soft = tower(frames, mask)
    assert soft.mask.sum(1).tolist() == [0, 4]
    assert (soft.features[0] == 0.0).all()
    torch.testing.assert_close(soft.features[1], alone(tower, clip), atol=1e-5, rtol=0)
    assert all(g.isfinite().all() for g in gradients(tower, soft.features.square().sum()).values())


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (16, 1), (17, 2), (32, 2), (33, 3), (131, 9)])
def test_there_is_one_soft_token_for_every_16_frames_begun(frames: int, tokens: int) -> None:
    assert len(alone(random_tower(tiny_audio()), random_clip(tiny_audio(), frames))) == tokens


def test_a_layer_hears_12_vectors_of_the_past_and_its_convolution_4_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # A vector is made of 7 frames, 4 apart. The norm between would hear everything before, so it is made deaf.
    monkeypatch.setattr(CumulativeGroupNorm, "forward", lambda _, x: x)
    config = tiny_audio(conf_num_hidden_layers=1, conf_reduction_factor=1)
    tower, frames = random_tower(config), random_clip(config, 240)[None].requires_grad_()
    features = tower(frames, torch.ones(1, 240, dtype=torch.bool)).features[0, 40]
    (gradient,) = torch.autograd.grad(features.square().sum(), frames)
    heard = (gradient[0] != 0.0).any(-1).nonzero().flatten().tolist()
    assert (heard[0], heard[-1]) == (4 * (40 - 12 - 4), 4 * 40 + 6)


def saved_bytes(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """What autograd keeps for the backward pass of ``run``."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(kept.values()), result


def test_recomputing_gives_the_same_gradients_bitwise_from_less_memory() -> None:
    tower, audio = random_tower(tiny_audio()), Audio.of(clips_of(tiny_audio(), (40, 131, 7)))

    def run() -> Tensor:
        return tower(audio.frames, audio.mask).features.square().sum()

    kept_bytes, total = saved_bytes(run)
    kept = gradients(tower, total)
    tower.recompute = True
    recomputing_bytes, total = saved_bytes(run)
    remade = gradients(tower, total)
    assert kept.keys() == remade.keys() == dict(tower.named_parameters()).keys()
    assert all(torch.equal(kept[name], remade[name]) for name in kept)
    assert recomputing_bytes < 0.5 * kept_bytes


def test_bfloat16_is_finite_and_near_float32() -> None:
    clips = Audio.of(clips_of(tiny_audio()))
    with torch.no_grad():
        exact = random_tower(tiny_audio())(clips.frames, clips.mask).features
    tower = random_tower(tiny_audio(), dtype=torch.bfloat16)
    soft = tower(clips.frames, clips.mask)
    assert soft.features.dtype is torch.bfloat16
    assert (soft.features - exact).norm() <= 0.05 * exact.norm()
    assert all(g.isfinite().all() for g in gradients(tower, soft.features.square().sum()).values())


def test_under_autocast_soft_tokens_are_near_float32_and_gradients_finite() -> None:
    tower, clips = random_tower(tiny_audio()), Audio.of(clips_of(tiny_audio()))
    with torch.no_grad():
        exact = tower(clips.frames, clips.mask).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = tower(clips.frames, clips.mask).features
    assert (features - exact).norm() <= 0.05 * exact.norm()
    found = gradients(tower, features.float().square().sum())
    assert found.keys() == dict(tower.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_a_statistic_of_the_convolutions_norm_is_float32_in_a_bfloat16_tower() -> None:
    norm = random_tower(tiny_audio()).subsample_conv_projection.conv_0.norm
    x = torch.randn(1, 8, 600, 4, generator=torch.Generator().manual_seed(0)) + 5.0
    x = x.bfloat16().float()
    # In bfloat16, a running sum would stop growing after some 256 frames.
    assert (norm.bfloat16()(x.bfloat16()).float() - norm.float()(x)).abs().max() < 0.05


def test_a_recording_of_other_mels_is_refused() -> None:
    with pytest.raises(InputError, match="frames have 12 mels, but it takes 16"):
        alone(random_tower(tiny_audio()), torch.zeros(5, 12))


def test_padding_before_a_real_frame_is_refused() -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 0] = mask[2, 4] = False
    with pytest.raises(InputError, match="clip 1 has padding before a real frame"):
        random_tower(tiny_audio())(torch.zeros(3, 5, 16), mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 33, "conf_num_attention_heads": 3}, "hidden_size is 33; it must be even"),
        ({"sscp_conv_kernel_size": ((3, 3), (3, 11))}, "wider than what is left of 16 mels"),
    ],
)
def test_sizes_that_fit_no_tower_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AudioTower(tiny_audio(**changes))
