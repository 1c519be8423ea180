# SPDX-License-Identifier: Apache-2.0
"""Every picture becomes pixels of one size, and settings that cannot be are refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from model.errors import ConfigError
from model.processor.image import ImageProcessor
from model.processor.media import Picture
from model.processor.settings import ImageSettings
from tests.tiny_processor import noise


@pytest.mark.parametrize("size", [(1, 1), (768, 768), (3, 2000), (1500, 2)])
def test_pixels_are_of_one_size_and_between_none_and_full(size: tuple[int, int]) -> None:
    pixels = ImageProcessor()(Picture(noise("RGB", size)))
    assert pixels.shape == (3, 768, 768)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1


def test_height_and_width_are_not_mixed_up() -> None:
    pixels = ImageProcessor(ImageSettings(height=4, width=6))(Picture(Image.new("RGB", (8, 3), (255, 0, 51))))
    assert pixels.shape == (3, 4, 6)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1, 0, 0.2]))


def test_normalising_takes_mean_and_spread() -> None:
    settings = ImageSettings(height=2, width=2, do_normalize=True, image_mean=(0.5, 0.0, 1.0), image_std=(0.5, 1, 2.0))
    pixels = ImageProcessor(settings)(Picture(Image.new("RGB", (1, 1), "white")))
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"size": {"shortest_edge": 9}}, "must hold 'height' and 'width'"),
        ({"size": {"height": 0, "width": 2}}, "size is 0 x 2"),
        ({"resample": 1}, r"allowed are 2 \(bilinear\), 3 \(bicubic\)"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_center_crop": True}, "only resized"),
        ({"image_std": [0.5, 0.5, 0.0]}, "positive"),
        ({"image_mean": [0.5]}, "list of 3"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "it must be finite"),
        ({"rescale_factor": float("inf")}, "rescale_factor is inf; it must be finite"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type is 'CLIPImageProcessor'; only those of"),
    ],
)
def test_settings_that_cannot_be_are_refused(published: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageSettings.parse(published)


def test_settings_survive_being_published() -> None:
    settings = dataclasses.replace(ImageSettings(), height=5, resample=3, do_normalize=True)
    assert ImageSettings.parse(settings.publish()) == settings
    assert ImageSettings.parse({}) == ImageSettings()
    assert ImageProcessor(settings).fingerprint != ImageProcessor().fingerprint
