# SPDX-License-Identifier: Apache-2.0
"""A vocabulary of Gemma's build, trained on real text of Python's own documentation; and a directory that has it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from model.config import ModelConfig
from model.processor.processor import Processor
from model.processor.published import with_media_tokens
from model.processor.settings import ImageSettings
from model.processor.tokenizer import Tokenizer
from tests.tiny import TINY_AUDIO, TINY_TEXT
from tests.tiny_processor import AUDIO, SPECIAL, VISION

NUM_PIECES = 1200
TEXT_VOCAB = NUM_PIECES + 20  # the last ids of the text are rows of the model alone, no token has them
CONFIG = ModelConfig(
    text=dataclasses.replace(TINY_TEXT, vocab_size=TEXT_VOCAB + 16, vocab_size_per_layer_input=TEXT_VOCAB),
    vision=dataclasses.replace(
        VISION, vocab_offset=TEXT_VOCAB,
        tokens=dataclasses.replace(VISION.tokens, placeholder_id=TEXT_VOCAB + 1, end_id=TEXT_VOCAB),
    ),
    audio=dataclasses.replace(
        TINY_AUDIO, input_feat_size=128, sscp_conv_channel_size=(8, 4), vocab_offset=TEXT_VOCAB + 8,
        tokens=dataclasses.replace(AUDIO.tokens, placeholder_id=TEXT_VOCAB + 9, end_id=TEXT_VOCAB + 8),
    ),
)  # fmt: skip
TEXTS = tuple(part for name in sorted(topics) for part in topics[name].split("\n\n") if part.strip())
TRAINED_ON = TEXTS[::7]
GENERATION = {"bos_token_id": 2, "eos_token_id": [1, 6], "pad_token_id": 0, "top_k": 64,
              "suppress_tokens": [3, NUM_PIECES - 1], "bad_words_ids": [[5, 6], [NUM_PIECES - 1]]}  # fmt: skip


@cache
def trained_vocabulary() -> bytes:
    """A ``tokenizer.json``: byte fallback, spaces as '▁', and like Gemma's a merge for every way to build a token."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    fixed = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=NUM_PIECES, special_tokens=fixed, limit_alphabet=80, show_progress=False)
    backend.train_from_iterator(TRAINED_ON, trainer)
    vocab = backend.get_vocab()
    merges = [pair for token in sorted(vocab, key=vocab.__getitem__) for pair in splits(token, vocab)]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(list(SPECIAL))
    return with_media_tokens(backend.to_str().encode(), CONFIG)


def splits(token: str, vocab: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The ways to put a token together from two others; none for one in angle brackets."""
    for at in range(1, len(token) if not token.startswith("<") else 0):
        if token[:at] in vocab and token[at:] in vocab:
            yield token[:at], token[at:]


def write_files(directory: Path) -> Processor:
    """Write all that lies beside the weights of a published model, for ``CONFIG``."""
    content = trained_vocabulary()
    added = {str(token.pop("id")): token for token in json.loads(content)["added_tokens"]}
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    sidecar = names | {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added}
    tokenizer = Tokenizer(
        content,
        {
            "tokenizer_config.json": json.dumps(sidecar).encode(),
            "special_tokens_map.json": json.dumps(names).encode(),
            "added_tokens.json": json.dumps(
                {token["content"]: int(number) for number, token in added.items()}
            ).encode(),
        },
    )
    processor = Processor.create(tokenizer, CONFIG, image=ImageSettings(height=64, width=64))
    processor.write(directory)
    CONFIG.write(directory)
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    return processor
