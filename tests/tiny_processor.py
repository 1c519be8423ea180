# SPDX-License-Identifier: Apache-2.0
"""A processor for a small vocabulary of real tokens, and real pictures and recordings to feed it."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from functools import cache
from pathlib import Path

import numpy as np
import tokenizers
from PIL import Image
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from model.config import ModelConfig
from model.processor.chat import AUDIO_MARKS, IMAGE_MARKS
from model.processor.processor import Processor
from model.processor.published import with_media_tokens
from model.processor.settings import ImageSettings
from model.processor.tokenizer import Tokenizer
from model.tower_config import AudioConfig, MediaTokens, VisionConfig
from tests.tiny import TINY_TEXT

ROOT = Path(__file__).parents[1]
RECORDINGS = tuple(sorted((ROOT / "recipes/recordings/phrases").glob("*.ogg"))) + tuple(
    sorted((ROOT / "recipes/recordings/english_allison").glob("*.flac"))
)
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>",
           IMAGE_MARKS.begin, AUDIO_MARKS.begin)  # fmt: skip
TEXTS = ("What is it? It is a héron 🦩, and it flies.\n\n", "\n\n\nuser\nmodel\n", "  two  spaces\t\n \n")
TEXT_VOCAB = 320

VISION = VisionConfig(
    architecture="mobilenetv5_tiny_enc", hidden_size=64, vocab_size=8, vocab_offset=TEXT_VOCAB,
    tokens=MediaTokens(placeholder_id=TEXT_VOCAB + 1, begin_id=7, end_id=TEXT_VOCAB, per_item=16),
)  # fmt: skip
AUDIO = AudioConfig(
    vocab_size=8, vocab_offset=TEXT_VOCAB + 8,
    tokens=MediaTokens(placeholder_id=TEXT_VOCAB + 9, begin_id=8, end_id=TEXT_VOCAB + 8, per_item=188),
)  # fmt: skip
CONFIG = ModelConfig(
    text=dataclasses.replace(TINY_TEXT, vocab_size=TEXT_VOCAB + 16, vocab_size_per_layer_input=TEXT_VOCAB),
    vision=VISION,
    audio=AUDIO,
)


@cache
def vocabulary() -> bytes:
    """A byte-level ``tokenizer.json`` with the marks of turns and media, line breaks merged as Gemma's are."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCAB, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*TEXTS] * 4, trainer)
    return with_media_tokens(backend.to_str().encode(), CONFIG)


def gemma_vocabulary() -> bytes:
    """The published build in small: spaces become '▁', line breaks join, what is unknown falls back to bytes."""
    runs = ["\n" * 2**power for power in range(4)]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *runs, "▁", "▁▁", *"HWaehilorstu", "he", "is"]
    merges = [*zip(runs[:-1], runs[:-1], strict=True), ("▁", "▁"), ("h", "e"), ("i", "s")]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges, unk_token="<unk>",
            fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(list(SPECIAL))
    return with_media_tokens(backend.to_str().encode(), CONFIG)


@cache
def tiny_processor(config: ModelConfig = CONFIG, *, like_gemma: bool = False) -> Processor:
    """The processor of a new tiny model, its vocabulary byte-level or of Gemma's own kind."""
    if like_gemma:
        kind = {"tokenizer_config.json": b'{"tokenizer_class": "GemmaTokenizer"}'}
        tokenizer = Tokenizer(gemma_vocabulary(), kind)
    else:
        tokenizer = Tokenizer(vocabulary(), {})
    return Processor.create(tokenizer, config, image=ImageSettings(height=64, width=64))


def photographs() -> tuple[Path, ...]:
    """Two photographs that come with scikit-learn, which is found and never imported."""
    found = importlib.util.find_spec("sklearn")
    locations = list(found.submodule_search_locations or ()) if found else []
    return tuple(Path(place) / "datasets/images" / name for place in locations for name in ("china.jpg", "flower.jpg"))


def noise(mode: str, size: tuple[int, int] = (23, 17), seed: int = 0) -> Image.Image:
    """A random image of a mode of Pillow's."""
    rng = np.random.default_rng(seed)
    width, height = size
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    grey = rng.integers(0, 256, (height, width), dtype=np.uint8)
    if mode in ("1", "I", "F"):
        return Image.fromarray(grey).convert(mode)
    if mode == "P":
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).quantize(16)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.merge(mode, [Image.fromarray(pixels[:, :, band]) for band in range(bands)])


def file_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
