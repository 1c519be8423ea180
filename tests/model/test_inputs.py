# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from typing import Any

import jaxtyping
import pytest
import torch

from model.errors import InputError
from model.inputs import Audio, Images, Inputs, SoftTokens


@pytest.fixture(autouse=True)
def as_outside_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # shapes are otherwise refused before we look


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 1, 3, 8, 8),  # an axis too many, as collators add it
        torch.zeros(3, 8, 8),
        torch.zeros(1, 8, 8, 3),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=["five_axes", "three_axes", "channels_last", "none", "bytes"],
)
def test_images_of_another_shape_or_kind_are_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"they must be numbers in \[0, 1\] of shape \(images, 3, height, width\)"):
        Images(pixels=pixels)


@pytest.mark.parametrize(
    ("value", "found"),
    [(255.0, "from 0 to 255"), (-0.01, "from -0.01 to 0.5"), (torch.nan, "from nan to nan")],
)
def test_pixels_beyond_0_and_1_are_refused(value: float, found: str) -> None:
    pixels = torch.tensor([0.0, 0.5, value]).abs() if value > 1 else torch.tensor([0.5, 0.5, value])
    with pytest.raises(InputError, match=rf"values reach {found}; they must lie in \[0, 1\]: divide bytes by 255"):
        Images(pixels=pixels.expand(1, 3, 4, 3).clone())
    assert len(Images(pixels=torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2))) == 1


def test_clips_of_different_lengths_lie_side_by_side() -> None:
    audio = Audio.of([torch.ones(2, 4), torch.full((3, 4), 2.0)])
    assert audio.mask.tolist() == [[True, True, False], [True] * 3]
    assert audio.frames[..., 0].tolist() == [[1, 1, 0], [2, 2, 2]]
    assert len(audio) == 2


@pytest.mark.parametrize("clips", [[], [torch.zeros(0, 4)], [torch.zeros(3, 4), torch.zeros(0, 4)]])
def test_clips_without_frames_are_refused(clips: list[torch.Tensor]) -> None:
    with pytest.raises(InputError, match="a clip of audio has no frames"):
        Audio.of(clips)


def test_audio_whose_mask_is_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"mask has shape \(1, 3\); they must be \(clips, frames, mels\)"):
        Audio(frames=torch.zeros(1, 4, 8), mask=torch.ones(1, 3, dtype=torch.bool))


def test_audio_whose_mask_is_of_numbers_is_refused() -> None:
    with pytest.raises(InputError, match=r"mask of the audio frames is torch\.int64 .* it must be torch\.bool"):
        Audio(frames=torch.zeros(1, 4, 8), mask=torch.ones(1, 4, dtype=torch.long))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_frames_without_a_number_are_refused_where_they_are_real(value: float) -> None:
    frames, mask = torch.zeros(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)
    frames[1, 3, 5] = value
    with pytest.raises(InputError, match="audio clip 1 has real frames with NaN or infinity in them"):
        Audio(frames=frames, mask=mask)
    mask[1, 3] = False
    assert len(Audio(frames=frames, mask=mask)) == 2


@pytest.mark.parametrize(
    ("features", "mask"),
    [
        (torch.zeros(4, 8), torch.ones(4, dtype=torch.bool)),
        (torch.zeros(1, 4, 8), torch.ones(1, 3, dtype=torch.bool)),
        (torch.zeros(1, 4, 8), torch.ones(1, 4)),
        (torch.zeros(1, 0, 8), torch.ones(1, 0, dtype=torch.bool)),
        (torch.zeros(1, 4, 8, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool)),
    ],
    ids=["two_axes", "another_mask", "mask_of_numbers", "none", "whole_numbers"],
)
def test_soft_tokens_of_another_shape_or_kind_are_refused(features: torch.Tensor, mask: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"must be fractions \(items, tokens, channels\) and torch\.bool"):
        SoftTokens(features=features, mask=mask)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), "at least one whole number is needed"),
        (torch.ones(1, 0, dtype=torch.long), torch.ones(1, 0, dtype=torch.bool), "at least one whole number is needed"),
        (torch.ones(3, dtype=torch.long), torch.ones(3, dtype=torch.bool), r"both must be \(batch, seq\)"),
        (torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long), "it must be torch.bool, True at real"),
    ],
    ids=["fractions", "none", "one_axis", "mask_of_numbers"],
)
def test_tokens_of_another_shape_or_kind_are_refused(ids: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Inputs(ids=ids, mask=mask)


@pytest.mark.parametrize("medium", ["images", "audio"])
def test_media_that_are_bare_tensors_are_refused(medium: str) -> None:
    given: dict[str, Any] = {medium: torch.zeros(1, 3, 8, 8)}
    with pytest.raises(InputError, match=rf"{medium} are given as Tensor; they must be (Images|Audio) or SoftTokens"):
        dataclasses.replace(Inputs.of(torch.ones(1, 3, dtype=torch.long)), **given)


def test_the_other_medium_is_refused() -> None:
    inputs = Inputs.of(torch.ones(1, 3, dtype=torch.long))
    wrong: Any = Images(pixels=torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="audio are given as Images; they must be Audio or SoftTokens"):
        dataclasses.replace(inputs, audio=wrong)


def test_what_ids_are_below_is_known_once_they_have_moved_and_must_be_true() -> None:
    inputs = Inputs.of(torch.tensor([[3, 9, 4]]))
    assert inputs.ids_below is None
    assert inputs.may_hold(range(500, 600))  # nobody has looked
    moved = inputs.to("meta")
    assert (moved.ids_below, moved.to("meta").ids_below) == (10, 10)
    assert moved.may_hold(range(9, 12))
    assert not moved.may_hold(range(10, 12))
    with pytest.raises(InputError, match=r"ids reach to 9, but are said to be below 9 \(ids_below\)"):
        Inputs.of(inputs.ids, ids_below=9)


def test_inputs_move_with_their_media() -> None:
    soft = SoftTokens(features=torch.zeros(1, 2, 4), mask=torch.ones(1, 2, dtype=torch.bool))
    plain = Inputs.of(torch.ones(1, 3, dtype=torch.long))
    inputs = Inputs(ids=plain.ids, mask=plain.mask, images=Images(pixels=torch.zeros(1, 3, 8, 8)), audio=soft)
    moved = inputs.to("meta")
    assert isinstance(moved.images, Images)
    assert isinstance(moved.audio, SoftTokens)
    tensors = (moved.ids, moved.mask, moved.images.pixels, moved.audio.features, moved.audio.mask)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert Audio.of([torch.zeros(2, 4)]).to("meta").frames.device.type == "meta"
    assert plain.to("meta").images is None
