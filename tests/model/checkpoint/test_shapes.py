# SPDX-License-Identifier: Apache-2.0
"""What a whole model owns is told without building it, and without torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.shapes import embedder_shapes, tower_shapes
from model.gemma3n import Towers, media_embedder
from model.tower_config import Modality
from tests.tiny import TINY_AUDIO, tiny_multimodal_config


@given(rows=st.integers(8, 12), channels=st.integers(1, 9), dim=st.integers(1, 9))
def test_shapes_of_an_embedder_are_those_of_the_built_one(rows: int, channels: int, dim: int) -> None:
    tower = dataclasses.replace(TINY_AUDIO, vocab_size=rows, hidden_size=channels, conf_num_attention_heads=1)
    text = dataclasses.replace(tiny_multimodal_config().text, hidden_size=dim, vocab_size=100)
    config = dataclasses.replace(tiny_multimodal_config().only([]), text=text, audio=tower)
    with torch.device("meta"):
        built = media_embedder(config, tower)
    assert built is not None
    shapes = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    assert embedder_shapes(tower, text) == shapes


@pytest.mark.parametrize("modalities", [[], [Modality.vision], [Modality.audio], [Modality.vision, Modality.audio]])
def test_shapes_beside_the_decoder_are_those_of_the_towers_that_there_are(modalities: list[Modality]) -> None:
    config = tiny_multimodal_config().only(modalities)
    with torch.device("meta"):
        towers = Towers(config)
    shapes = {f"model.{name}": tuple(parameter.shape) for name, parameter in towers.named_parameters()}
    assert tower_shapes(config) == {n: shape for n, shape in shapes.items() if not n.startswith("model.language_model")}


def test_what_a_model_owns_is_told_without_torch() -> None:
    program = "import sys, model.checkpoint.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
