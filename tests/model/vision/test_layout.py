# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from model.vision.layout import older_layout
from tests.model.vision.tiny import vision_tower

BIAS = "timm_model.conv_stem.conv.bias"


@pytest.mark.parametrize("prefix", ["", "model.vision_tower.", "vision_tower."])
def test_a_tower_without_a_bias_in_its_first_convolution_is_of_the_older_layout(prefix: str) -> None:
    names = [prefix + name for name in vision_tower().state_dict() if name != BIAS]
    message = older_layout(names)
    assert message is not None
    assert f"'{prefix}{BIAS}' is missing" in message
    assert "timm 1.0.16" in message
    assert "download the model's current weights again" in message


def test_a_current_tower_and_a_file_without_a_tower_are_not_of_the_older_layout() -> None:
    assert older_layout(f"model.vision_tower.{name}" for name in vision_tower().state_dict()) is None
    assert older_layout(["model.language_model.norm.weight", "model.audio_tower.conformer.0.norm.weight"]) is None
    assert older_layout([]) is None
