# SPDX-License-Identifier: Apache-2.0
"""Answers about images and sound equal those of transformers' ``generate``, from tensors and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from model.checkpoint.saving import save
from model.generation.generate import complete, ids_of_media
from model.generation.sampling import SamplingConfig
from model.inputs import Audio, Images
from recipes.cli import main
from tests.parity.reference import multimodal_reference_of
from tests.parity.timm_shim import register_tiny_tower
from tests.recipes.conftest import SHORT
from tests.tiny import tiny_model, tiny_multimodal_config, tiny_multimodal_inputs
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor

pytestmark = pytest.mark.parity

CONFIG = tiny_multimodal_config()
SPREAD = 0.2  # small enough that rounding turns no choice, large enough that the choices differ
STEPS = CONFIG.text.sliding_window + 22


def test_greedy_answers_about_media_equal_the_reference_far_past_the_window() -> None:
    model = tiny_model(CONFIG, spread=SPREAD).eval()
    # Clips of one length: with others, the reference's soft tokens depend on a clip's batch-mates.
    inputs = tiny_multimodal_inputs(CONFIG, "text image text audio text", "audio text", "image image", frames=(131,))
    assert isinstance(inputs.images, Images)
    assert isinstance(inputs.audio, Audio)
    reference: Any = multimodal_reference_of(model)
    theirs = reference.generate(
        inputs.ids, attention_mask=inputs.mask, pixel_values=inputs.images.pixels, input_features=inputs.audio.frames,
        input_features_mask=inputs.audio.mask, max_new_tokens=STEPS, do_sample=False, eos_token_id=None,
        suppress_tokens=ids_of_media(CONFIG),
    )  # fmt: skip
    ours = complete(model, inputs, sampling=SamplingConfig(max_new_tokens=STEPS), stop_ids=())
    assert ours == theirs[:, inputs.ids.shape[1] :].tolist()
    assert len(set(map(tuple, ours))) == 3
    assert all(len(set(row)) > 3 for row in ours)


def test_a_slice_answers_in_transformers_what_matslice_generates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny_model(CONFIG, spread=SPREAD), tmp_path / "whole", extras=tiny_media_processor().write)
    picture, tone = tmp_path / "a.png", tmp_path / "a.wav"
    picture.write_bytes(picture_bytes(3, side=50))
    tone.write_bytes(sound_bytes(440, seconds=0.7))
    assert main(["slice", f"checkpoint={tmp_path / 'whole'}", *SHORT, f"output={tmp_path / 'slice'}"]) == 0
    capsys.readouterr()
    words = [f"checkpoint={tmp_path / 'slice'}", "prompt=who is it?", f"image={picture}", f"audio={tone}"]
    assert main(["generate", *words, f"generation.max_new_tokens={STEPS}"]) == 0
    ours = capsys.readouterr().out

    register_tiny_tower()
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "slice")
    reference: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "slice").eval()
    samples, _ = soundfile.read(tone, dtype="float32")
    content = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": "who is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(
        text=text, images=[[Image.open(picture)]], audio=[np.asarray(samples)], return_tensors="pt",
        add_special_tokens=False,
    )  # fmt: skip
    tokenizer = tiny_media_processor().tokenizer
    with torch.no_grad():
        answer = reference.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, eos_token_id=[1, tokenizer.end_of_turn_id],
            suppress_tokens=ids_of_media(CONFIG),
        )  # fmt: skip
    theirs = answer[0, inputs["input_ids"].shape[1] :].tolist()
    assert ours == tokenizer.decode(theirs) + "\n"
    assert len(set(theirs)) > 3
