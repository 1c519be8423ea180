# SPDX-License-Identifier: Apache-2.0
"""Slices of a parent with towers load in transformers, and compute there what they compute here from media.

Compared are the same three as in test_slices.py; likewise for slices that leave the towers out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Gemma3nForCausalLM, Gemma3nForConditionalGeneration

from model.checkpoint.load import load
from model.inputs import Audio, Images, Inputs
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from tests.parity.reference import relative
from tests.parity.sliced import (
    PROMPTS,
    WHOLE_CONFIG,
    loaded_by_transformers,
    official_slices,
    our_answers,
    parent,
    their_answers,
    their_scores,
    write_parent,
)
from tests.parity.timm_shim import register_tiny_tower
from tests.tiny import tiny_multimodal_inputs

pytestmark = pytest.mark.parity

OFFICIAL = official_slices()
WITH_TOWERS = ["Main model", "Config for official E2B Model", "Config for E2.98B (block-level)"]
# Clips of one length: with others, the reference's soft tokens depend on a clip's batch-mates.
MEDIA_INPUTS = tiny_multimodal_inputs(WHOLE_CONFIG, "text image text audio text", "text audio image", frames=(131,))
SPREAD = 0.07  # as in test_slices.py
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def whole_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "parent"
    write_parent(parent(WHOLE_CONFIG, SPREAD), directory)
    return directory


def media(inputs: Inputs) -> dict[str, Tensor]:
    """Pictures and clips as transformers takes them."""
    assert isinstance(inputs.images, Images)
    assert isinstance(inputs.audio, Audio)
    return {
        "pixel_values": inputs.images.pixels,
        "input_features": inputs.audio.frames,
        "input_features_mask": inputs.audio.mask,
    }


@pytest.mark.parametrize("name", WITH_TOWERS)
def test_an_official_slice_with_towers_computes_in_transformers_what_it_computes_here(
    whole_directory: Path, tmp_path: Path, name: str
) -> None:
    register_tiny_tower()
    slice_checkpoint(whole_directory, tmp_path / "slice", SubModel(OFFICIAL[name]))
    theirs = loaded_by_transformers(tmp_path / "slice", AutoModelForImageTextToText)
    assert isinstance(theirs, Gemma3nForConditionalGeneration)
    ours, whole = load(tmp_path / "slice", dtype=torch.float32), parent(WHOLE_CONFIG, SPREAD)
    expected = their_scores(theirs, MEDIA_INPUTS, **media(MEDIA_INPUTS))
    with torch.no_grad():
        assert relative(ours(MEDIA_INPUTS).logits[MEDIA_INPUTS.mask], expected) <= TOLERANCE
        assert relative(whole(MEDIA_INPUTS, OFFICIAL[name]).logits[MEDIA_INPUTS.mask], expected) <= TOLERANCE
    answers = their_answers(theirs, MEDIA_INPUTS, WHOLE_CONFIG, **media(MEDIA_INPUTS))
    assert our_answers(ours, MEDIA_INPUTS) == answers


@pytest.mark.parametrize("name", WITH_TOWERS)
def test_an_official_slice_without_towers_is_transformers_text_model(
    whole_directory: Path, tmp_path: Path, name: str
) -> None:
    slice_checkpoint(whole_directory, tmp_path / "slice", SubModel(OFFICIAL[name], modalities=(Modality.text,)))
    theirs, ours = loaded_by_transformers(tmp_path / "slice"), load(tmp_path / "slice", dtype=torch.float32)
    assert isinstance(theirs, Gemma3nForCausalLM)
    with torch.no_grad():
        assert relative(ours(PROMPTS).logits[PROMPTS.mask], their_scores(theirs, PROMPTS)) <= TOLERANCE
    assert our_answers(ours, PROMPTS) == their_answers(theirs, PROMPTS, ours.config)
