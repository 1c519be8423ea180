# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of fewer tokens: transformers reads the same ids and computes the same scores, media included."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
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
    PreTrainedTokenizerFast,
)

from model.checkpoint.load import load
from model.checkpoint.saving import save
from model.config import ModelConfig
from model.inputs import Images, Inputs
from model.processor.chat import Message, Role
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.processor.selection import choose
from model.processor.tokenizer import Tokenizer
from model.processor.trimming import Trimming
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary
from model.tower_config import Modality
from tests.parity.reference import relative
from tests.parity.timm_shim import register_tiny_tower
from tests.tiny import tiny_model
from tests.tiny_processor import noise
from tests.trained_tokenizer import CONFIG, TEXTS, trained_vocabulary, write_files

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5  # fp32 sums in another order, of the largest score
SPREAD = 0.05  # with larger weights the decoder enlarges the towers' rounding
ASKED = "Which statements does this compare with the others?"
UNSEEN = "Der héron 🦩\tfliegt über  Ägypten.\r\n\n日本語"
PICTURE = Picture(noise("RGB", (64, 64)))
# A whole number of the feature extractor's blocks: a padded clip's soft tokens are others in the reference.
CLIP = Recording(np.random.default_rng(1).normal(size=16_000 // 128 * 128).astype(np.float32) * 0.1, 16_000)
CONVERSATION = [
    Message(Role.user, (PICTURE, ASKED)),
    Message(Role.assistant, "The first."),
    Message(Role.user, (CLIP, "And the other?")),
]
THEIR_CONVERSATION = [
    {"role": "user", "content": [{"type": "image", "image": PICTURE.source}, {"type": "text", "text": ASKED}]},
    {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
    {"role": "user", "content": [{"type": "audio", "audio": CLIP.source}, {"type": "text", "text": "And the other?"}]},
]


@cache
def vocabulary() -> Vocabulary:
    tokenizer = Tokenizer(trained_vocabulary(), {})
    used = tokenizer.encode(f"{TEXTS[3]} {ASKED}") + tokenizer.encode("And the other?") + tokenizer.encode(ASKED)
    used += tokenizer.encode("The first.")
    return choose(used, tokenizer, Trimming(trained_vocabulary(), {}), CONFIG)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("weights") / "parent"
    save(tiny_model(CONFIG, spread=SPREAD), directory, extras=lambda inside: write_files(inside) and None)
    return directory


@pytest.fixture(scope="module")
def child(parent: Path) -> Path:
    directory = parent.with_name("child")
    slice_checkpoint(parent, directory, SubModel(SliceSpec.full(CONFIG.text), vocabulary=vocabulary()))
    return directory


def processor_of(directory: Path) -> Processor:
    return Processor.read(directory, ModelConfig.read(directory))


def theirs_of(directory: Path, auto: Any = AutoModelForImageTextToText) -> Any:
    register_tiny_tower()
    theirs, told = auto.from_pretrained(directory, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return theirs.eval()


def new_columns(scores: Tensor) -> Tensor:
    """The scores of a parent that its child has, in the child's order."""
    return scores[..., [vocabulary().old_id(new) for new in range(vocabulary().new_id(CONFIG.text.vocab_size))]]


@pytest.mark.parametrize("read", [AutoTokenizer, PreTrainedTokenizerFast], ids=["auto", "fast"])
def test_both_read_the_same_ids(child: Path, read: Any) -> None:
    theirs, ours = read.from_pretrained(child), Tokenizer.read(child)
    assert len(theirs) == len(json.loads((child / "tokenizer.json").read_bytes())["model"]["vocab"])
    for text in [*TEXTS[:60], ASKED, UNSEEN, f"<start_of_turn>user\n{ASKED}<end_of_turn>\n", "a<start_of_image>b"]:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == [ours.bos_id, *ids]
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert (theirs.pad_token_id, theirs.bos_token_id) == (ours.pad_id, ours.bos_id)


def test_conversations_with_media_are_encoded_alike_and_as_by_the_parent(parent: Path, child: Path) -> None:
    theirs: Any = AutoProcessor.from_pretrained(child)
    given = theirs.apply_chat_template(
        [THEIR_CONVERSATION], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ours = processor_of(child).encode(CONVERSATION, add_generation_prompt=True)
    assert given["input_ids"][0].tolist() == ours
    whole = processor_of(parent).encode(CONVERSATION, add_generation_prompt=True)
    assert [vocabulary().new_id(old) for old in whole] == ours


@torch.no_grad()
def test_scores_of_kept_tokens_are_the_parents_in_both(parent: Path, child: Path) -> None:
    whole, small = (
        processor_of(directory).inputs([CONVERSATION], add_generation_prompt=True) for directory in (parent, child)
    )
    expected = new_columns(load(parent, dtype=torch.float32)(whole).logits)
    ours = load(child, dtype=torch.float32)(small).logits
    assert torch.equal(ours, expected)
    given = AutoProcessor.from_pretrained(child).apply_chat_template(
        [THEIR_CONVERSATION], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    media = {name: given[name] for name in ("input_features", "input_features_mask")}
    assert isinstance(small.images, Images)
    theirs = theirs_of(child)(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=small.images.pixels,
        use_cache=False, **media,
    ).logits  # fmt: skip
    assert relative(ours, theirs) <= TOLERANCE


@torch.no_grad()
def test_a_part_of_fewer_layers_and_tokens_without_towers_is_loaded_too(parent: Path, tmp_path: Path) -> None:
    spec = SliceSpec.resolve(SliceConfig(name="part", skip_layers=[3, 4, 5], ffn_widths=[24]), CONFIG.text)
    some = Vocabulary(tuple(old for old in vocabulary().kept), vocabulary().parent_size)
    slice_checkpoint(parent, tmp_path / "part", SubModel(spec, modalities=(Modality.text,), vocabulary=some))
    tokenizer = Tokenizer.read(tmp_path / "part")
    inputs = Inputs.of(torch.tensor([tokenizer.encode(f"<bos>{ASKED} {UNSEEN}")]))
    ours = load(tmp_path / "part", dtype=torch.float32)(inputs).logits
    theirs = theirs_of(tmp_path / "part", AutoModelForCausalLM)(input_ids=inputs.ids, use_cache=False).logits
    assert relative(ours, theirs) <= TOLERANCE
    before = dataclasses.replace(inputs, ids=inputs.ids.clone().apply_(some.old_id))
    whole = load(parent, dtype=torch.float32, spec=spec, modalities=[Modality.text])
    assert torch.equal(ours, new_columns(whole(before).logits))


def test_answers_end_at_the_same_tokens(child: Path) -> None:
    config = theirs_of(child).generation_config
    tokenizer = Tokenizer.read(child)
    assert [tokenizer.token(number) for number in config.eos_token_id] == ["<eos>", "<end_of_turn>"]
    assert (config.pad_token_id, config.bos_token_id) == (tokenizer.pad_id, tokenizer.bos_id)


@pytest.mark.parametrize("kept", [None, "trimmed"])
def test_beside_a_model_of_text_alone_transformers_has_a_tokenizer_for_a_processor(
    parent: Path, tmp_path: Path, kept: str | None
) -> None:
    assert json.loads((parent / "tokenizer_config.json").read_bytes())["processor_class"] == "Gemma3nProcessor"
    text = SubModel(SliceSpec.full(CONFIG.text), (Modality.text,), vocabulary=vocabulary() if kept else None)
    slice_checkpoint(parent, tmp_path / "text", text)
    read = AutoProcessor.from_pretrained(tmp_path / "text"), AutoTokenizer.from_pretrained(tmp_path / "text")
    for theirs in read:
        assert isinstance(theirs, PreTrainedTokenizerFast)
        assert theirs.encode(ASKED, add_special_tokens=False) == Tokenizer.read(tmp_path / "text").encode(ASKED)
    changed, whole = (json.loads((at / "tokenizer_config.json").read_bytes()) for at in (tmp_path / "text", parent))
    assert whole.keys() - changed.keys() == {"processor_class"}
