# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with towers cross to transformers and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Gemma3nConfig,
    Gemma3nForCausalLM,
    Gemma3nForConditionalGeneration,
    PreTrainedModel,
)

from model.checkpoint.load import load
from model.checkpoint.names import unused
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save
from model.checkpoint.shapes import model_shapes
from model.config import ModelConfig, TextConfig
from model.inputs import Audio, Images, Inputs
from model.processor.chat import Message, Role
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.count import Layout
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import AudioConfig, Modality, VisionConfig
from tests.parity.reference import multimodal_reference_of, relative
from tests.parity.timm_shim import register_tiny_tower
from tests.tiny import TINY_AUDIO, TINY_TEXT, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs
from tests.tiny_processor import AUDIO, noise, tiny_processor
from tests.tiny_processor import CONFIG as PROCESSOR_CONFIG

pytestmark = pytest.mark.parity
CONFIG = tiny_multimodal_config()
# Clips of one length: with others, the reference's soft tokens depend on a clip's batch-mates.
INPUTS = tiny_multimodal_inputs(CONFIG, "text image text audio text", "text audio image text", frames=[64])
SPREAD = 0.05  # with larger weights the decoder enlarges the towers' rounding
TOLERANCE = 1e-5  # fp32 sums in another order, of the largest score
SPEC = SliceSpec.resolve(
    SliceConfig(name="mixed", skip_layers=[3, 4, 5], ffn_widths=[48, 16, 24, 16, 32, 48]), TINY_TEXT
)


@torch.no_grad()
def their_scores(model: PreTrainedModel, inputs: Inputs = INPUTS) -> Tensor:
    media: dict[str, Any] = {}
    if isinstance(inputs.images, Images) and isinstance(inputs.audio, Audio):
        media["pixel_values"] = inputs.images.pixels
        media |= {"input_features": inputs.audio.frames, "input_features_mask": inputs.audio.mask}
    return model.eval()(
        input_ids=inputs.ids, attention_mask=inputs.mask.long(), use_cache=False, **media
    ).logits.float()


@torch.no_grad()
def our_scores(path: Path, inputs: Inputs = INPUTS, **how: Any) -> Tensor:
    return load(path, dtype=torch.float32, **how)(inputs).logits


def loaded_whole(path: Path, auto: Any = AutoModelForImageTextToText) -> Any:
    """The model transformers makes of a directory; nothing of it may be missing, left over or of another shape."""
    register_tiny_tower()
    theirs, told = auto.from_pretrained(path, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return theirs


def assert_same_scores(ours: Tensor, theirs: Tensor, inputs: Inputs = INPUTS) -> None:
    assert relative(ours[inputs.mask], theirs[inputs.mask]) <= TOLERANCE


def test_what_transformers_saves_is_loaded_and_saved_again_for_transformers(tmp_path: Path) -> None:
    theirs = multimodal_reference_of(tiny_model(CONFIG, spread=SPREAD))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    expected = their_scores(theirs)
    assert_same_scores(our_scores(tmp_path / "theirs"), expected)

    save(load(tmp_path / "theirs", dtype=torch.float32), tmp_path / "ours")
    again = loaded_whole(tmp_path / "ours")
    assert isinstance(again, Gemma3nForConditionalGeneration)
    assert torch.equal(their_scores(again), expected)
    assert torch.equal(our_scores(tmp_path / "ours"), our_scores(tmp_path / "theirs"))


def test_transformers_loads_a_slice_with_towers(tmp_path: Path) -> None:
    save(tiny_model(CONFIG, spread=SPREAD), tmp_path / "ours")
    slice_checkpoint(tmp_path / "ours", tmp_path / "slice", SubModel(SPEC))
    theirs = loaded_whole(tmp_path / "slice")
    assert_same_scores(our_scores(tmp_path / "slice"), their_scores(theirs))
    assert_same_scores(our_scores(tmp_path / "ours", spec=SPEC), their_scores(theirs))


def test_transformers_loads_a_slice_without_towers_as_a_text_model(tmp_path: Path) -> None:
    save(tiny_model(CONFIG, spread=SPREAD), tmp_path / "ours")
    slice_checkpoint(tmp_path / "ours", tmp_path / "slice", SubModel(SPEC, modalities=(Modality.text,)))
    theirs = loaded_whole(tmp_path / "slice", AutoModelForCausalLM)
    assert isinstance(theirs, Gemma3nForCausalLM)
    # Of the placeholders, too: without a tower they are read from the text's table by both.
    ids = Inputs(ids=INPUTS.ids, mask=INPUTS.mask)
    assert_same_scores(our_scores(tmp_path / "slice", ids), their_scores(theirs, ids))


def test_the_text_of_a_multimodal_file_is_what_transformers_text_only_class_makes_of_it(tmp_path: Path) -> None:
    save(tiny_model(CONFIG, spread=SPREAD), tmp_path / "ours")
    theirs = Gemma3nForCausalLM.from_pretrained(tmp_path / "ours")
    ids = Inputs(ids=INPUTS.ids, mask=INPUTS.mask)
    assert_same_scores(our_scores(tmp_path / "ours", ids, modalities=[Modality.text]), their_scores(theirs, ids))


def test_transformers_stops_at_every_id_that_ends_an_answer(tmp_path: Path) -> None:
    save(tiny_model(tiny_multimodal_config(eos_token_id=(1, 7))), tmp_path / "ours")
    assert loaded_whole(tmp_path / "ours").generation_config.eos_token_id == [1, 7]
    slice_checkpoint(tmp_path / "ours", tmp_path / "slice", SubModel(SPEC, modalities=()))
    assert loaded_whole(tmp_path / "slice", AutoModelForCausalLM).generation_config.eos_token_id == [1, 7]


def published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of transformers' model of a config."""
    published = config.publish()
    del published["model_type"]
    with torch.device("meta"):
        theirs = Gemma3nForConditionalGeneration(Gemma3nConfig(**published))
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    del shapes["lm_head.weight"]  # tied, and not in the files
    return shapes


@pytest.mark.parametrize("text", [{}, {"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10}])
def test_names_and_shapes_of_the_real_models_are_the_published_ones(text: dict[str, int]) -> None:
    config = ModelConfig(text=TextConfig.parse(text), vision=VisionConfig(), audio=AudioConfig())
    expected = published_shapes(config)
    assert model_shapes(config, Layout.used) == expected
    # Google's own files hold keys and values of readers, too.
    assert model_shapes(config, Layout.published) == expected | unused(config.text)


# Of a vocabulary of real tokens, and with as many mels as the processor makes.
HEARING = dataclasses.replace(
    TINY_AUDIO, input_feat_size=128, vocab_offset=AUDIO.vocab_offset, tokens=AUDIO.tokens, sscp_conv_channel_size=(8, 4)
)
SPEAKING = dataclasses.replace(PROCESSOR_CONFIG, audio=HEARING)
PICTURE = Picture(noise("RGB", (64, 64)))
# A whole number of the feature extractor's blocks, so that nothing is padded; see above.
CLIP = Recording(np.random.default_rng(1).normal(size=16_000 // 128 * 128).astype(np.float32) * 0.1, 16_000)
CONVERSATION = [
    Message(Role.user, ("See ", PICTURE, " hear ", CLIP, " What is it?")),
    Message(Role.assistant, "A héron."),
    Message(Role.user, "Is it?"),
]


def their_conversation() -> list[dict[str, Any]]:
    first = [
        {"type": "text", "text": "See "},
        {"type": "image", "image": PICTURE.source},
        {"type": "text", "text": " hear "},
        {"type": "audio", "audio": CLIP.source},
        {"type": "text", "text": " What is it?"},
    ]
    return [
        {"role": "user", "content": first},
        {"role": "assistant", "content": [{"type": "text", "text": "A héron."}]},
        {"role": "user", "content": [{"type": "text", "text": "Is it?"}]},
    ]


@pytest.fixture
def speaking(tmp_path: Path) -> Path:
    """A checkpoint with all the files of a processor."""
    processor = tiny_processor(SPEAKING)
    save(tiny_model(SPEAKING, spread=SPREAD), tmp_path / "whole", extras=processor.write)
    return tmp_path / "whole"


def test_a_slice_answers_in_transformers_with_the_processor_beside_it(speaking: Path, tmp_path: Path) -> None:
    slice_checkpoint(speaking, tmp_path / "slice", SubModel(SPEC))
    processor = AutoProcessor.from_pretrained(tmp_path / "slice")
    given = processor.apply_chat_template(
        [their_conversation()], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    theirs = loaded_whole(tmp_path / "slice")
    with torch.no_grad():
        expected = theirs.eval()(**given, use_cache=False).logits

    inputs = Inputs(
        ids=given["input_ids"],
        mask=given["attention_mask"].bool(),
        images=Images(pixels=given["pixel_values"]),
        audio=Audio(frames=given["input_features"], mask=given["input_features_mask"].bool()),
    )
    assert relative(our_scores(tmp_path / "slice", inputs), expected) <= TOLERANCE
    ours = Processor.read(tmp_path / "slice", Checkpoint.open(tmp_path / "slice").config)
    own = ours.inputs([CONVERSATION], add_generation_prompt=True)
    assert torch.equal(own.ids, inputs.ids)
    assert relative(our_scores(tmp_path / "slice", own), expected) <= 10 * TOLERANCE  # log-mels agree to 1e-6
    assert relative(our_scores(tmp_path / "slice", text_of(inputs), modalities=[]), expected) > 100 * TOLERANCE


def text_of(inputs: Inputs) -> Inputs:
    return Inputs(ids=inputs.ids, mask=inputs.mask)


def test_a_slice_without_towers_has_its_tokenizer_and_template_in_transformers(speaking: Path, tmp_path: Path) -> None:
    slice_checkpoint(speaking, tmp_path / "slice", SubModel(SPEC, modalities=(Modality.text,)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "slice")
    spoken = their_conversation()[1:] * 2
    messages = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in spoken[1:]]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=False, return_dict=False)
    roles = {"user": Role.user, "assistant": Role.assistant}
    ours = Processor.read(tmp_path / "slice", Checkpoint.open(tmp_path / "slice").config)
    assert ours.encode([Message(roles[turn["role"]], turn["content"]) for turn in messages]) == theirs
    assert not (tmp_path / "slice" / "preprocessor_config.json").exists()
