# SPDX-License-Identifier: Apache-2.0
"""The published models' names and shapes, towers included, against transformers; nothing is allocated."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration

from model.config import ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.tower_config import AudioConfig, VisionConfig
from tests.parity import timm_shim  # noqa: F401 - makes timm importable, which transformers' tower is made of

pytestmark = pytest.mark.parity

E2B = {"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10}


@pytest.mark.parametrize("text", [{}, E2B], ids=["E4B", "E2B"])
def test_names_and_shapes_are_those_of_the_reference(text: dict[str, int]) -> None:
    ours = Gemma3n.build(
        ModelConfig(text=TextConfig.parse(text), vision=VisionConfig(), audio=AudioConfig()), device="meta"
    )
    with torch.device("meta"):
        theirs = Gemma3nForConditionalGeneration(Gemma3nConfig(text_config=text))
    expected = {name: parameter.shape for name, parameter in theirs.named_parameters()}  # the tied head once
    assert {name: parameter.shape for name, parameter in ours.named_parameters()} == expected
    assert set(ours.state_dict()) == set(expected)  # and nothing else is in a checkpoint
