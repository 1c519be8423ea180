# SPDX-License-Identifier: Apache-2.0
"""A vocabulary made from the demo's own texts, with Gemma's special tokens where the model's config has them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from model.config import ModelConfig
from model.processor.chat import AUDIO_MARKS, CHAT_TEMPLATE, IMAGE_MARKS
from model.processor.processor import Processor
from model.processor.settings import AudioSettings, ImageSettings
from model.processor.tokenizer import TOKENIZER_FILE, Tokenizer
from model.vision.stages import architecture

TELEPHONE_HZ = 3_800.0  # nothing is heard above

SPECIAL_TOKENS = (  # ids 0, 1, 2, …
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", IMAGE_MARKS.begin,
    AUDIO_MARKS.begin,
)  # fmt: skip


def train_tokenizer(texts: Iterable[str], directory: Path, config: ModelConfig) -> None:
    """Make a byte-level BPE vocabulary of the model's size, in the files other libraries read too.

    The ids of the text lie below those of the towers' own vocabularies, as in the published one.
    """
    media = media_tokens(config)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(media, default=config.text.vocab_size),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte, so that no text is unknown
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    # Few texts may not fill their part of the vocabulary; added tokens get the next free ids.
    rest = range(backend.get_vocab_size(), config.text.vocab_size if media else 0)
    backend.add_special_tokens([media.get(number, f"<unused{number}>") for number in rest])
    directory.mkdir(parents=True)
    backend.save(str(directory / TOKENIZER_FILE))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    sidecar = names | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    Processor.create(
        Tokenizer.read(directory), config, image=image_settings(config), audio=audio_settings(config)
    ).write(directory)


def image_settings(config: ModelConfig) -> ImageSettings | None:
    """Pictures of the size that the vision tower is meant for."""
    if config.vision is None:
        return None
    side = architecture(config.vision.architecture).picture_px
    return ImageSettings(height=side, width=side)


def audio_settings(config: ModelConfig) -> AudioSettings | None:
    """Sound of the pitches that the demo's recordings have."""
    if config.audio is None:
        return None
    return AudioSettings(feature_size=config.audio.input_feat_size, max_frequency=TELEPHONE_HZ)


def media_tokens(config: ModelConfig) -> dict[int, str]:
    """The ids in the towers' own vocabularies, and what stands for them in a text."""
    named = {}
    for tower, marks in ((config.vision, IMAGE_MARKS), (config.audio, AUDIO_MARKS)):
        if tower is not None:
            named |= {number: f"<unused{number}>" for number in tower.ids}
            named |= {tower.tokens.end_id: marks.end, tower.tokens.placeholder_id: marks.placeholder}
    return named
