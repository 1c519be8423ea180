# SPDX-License-Identifier: Apache-2.0
"""Images and sound as they go wrong in life: cut short, empty, far too large, too short, of no known kind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from model.processor.tokenizer import PREPROCESSOR_FILE, PROCESSOR_FILE
from tests.recipes.broken import Places
from tests.trainer.parts import picture_bytes, sound_bytes, write_jsonl

STEM_BIAS = "model.vision_tower.timm_model.conv_stem.conv.bias"  # which towers of the first release do not have
WMA = 0x0161  # a codec's number in the header of a WAV file


@dataclass(frozen=True)
class MediaPlaces(Places):
    """``weights`` have towers; ``text_weights`` have none, nor the tokens of media."""

    text_weights: Path

    def file(self, name: str, content: bytes) -> Path:
        """A file of these bytes."""
        path = self.room / name
        path.write_bytes(content)
        return path

    def row(self, content: Any, **media: Any) -> Path:
        """A data file of one conversation, beside the media."""
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "abc"}]
        return write_jsonl(self.room / "rows.jsonl", [{"messages": messages, **media}])

    def of_the_first_release(self) -> Path:
        """A checkpoint whose vision tower is of the older layout."""

        def drop(tensors: dict[str, Tensor]) -> None:
            del tensors[STEM_BIAS]

        return self.tensors(drop)

    def without_processor(self) -> Path:
        """A checkpoint that came with a tokenizer alone."""
        directory = self.copy()
        for name in (PREPROCESSOR_FILE, PROCESSOR_FILE):
            (directory / name).unlink()
        return directory


def picture() -> bytes:
    """An image without fault."""
    return picture_bytes(1)


def sound() -> bytes:
    """A clip without fault."""
    return sound_bytes(440)


def cut_short() -> bytes:
    """An image of which the header and half of the rest came through."""
    return picture()[: len(picture()) // 2]


def damaged_inside() -> bytes:
    """An image whose header and end came through, and not what is between them."""
    content = picture()
    return content[: len(content) // 2] + bytes(len(content) // 4) + content[len(content) * 3 // 4 :]


def bomb() -> bytes:
    """A PNG file of a few bytes that claims to be 100,000 pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def clip(samples: np.ndarray) -> bytes:
    """A WAV file at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def one_nan() -> bytes:
    """A clip with a sample that is no number."""
    samples = np.zeros(4000, dtype=np.float32)
    samples[1234] = np.nan
    return clip(samples)


def of_another_codec() -> bytes:
    """A WAV file whose samples are coded in a way that is not read."""
    content = bytearray(sound_bytes(440))
    place = content.index(b"fmt ") + 8
    content[place : place + 2] = struct.pack("<H", WMA)
    return bytes(content)


FAULTS: dict[str, tuple[str, Callable[[], bytes], str]] = {  # what is wrong -> file, content, what is said of it
    "empty image": ("a.png", bytes, "a.png': is empty (0 bytes); make or fetch it again"),
    "no image": ("a.png", lambda: b"<html>not found</html>", "a.png': damaged, or no image of a kind that is read"),
    "image of absurd size": ("a.png", bomb, "bomb DOS attack; at most 100,000,000 are read; make it smaller"),
    "image cut short": ("a.png", cut_short, "a.png': damaged or cut short"),
    "sound shorter than a frame": ("a.wav", lambda: clip(np.zeros(400)), "a.wav': lasts 0.025 s, less than one frame"),
    "sound too long for a clip": (
        "a.wav", lambda: sound_bytes(440, seconds=3.0),
        "a.wav': lasts 3.00 s, but a clip has at most 1.936 s; shorten it, or say ",  # the key is the recipe's own
    ),
    "empty sound": ("a.wav", bytes, "a.wav': is empty (0 bytes); make or fetch it again"),
    "no sound": ("a.mp3", lambda: b"ID3 but no more", "a.mp3': damaged, or no sound of a kind that is read (WAV, FLAC"),
    "unknown codec": ("a.wav", of_another_codec, "a.wav': damaged, or no sound of a kind that is read (WAV, FLAC"),
}  # fmt: skip
INSIDE: dict[str, tuple[str, Callable[[], bytes], str]] = {  # what only decoding shows
    "image damaged inside": ("a.png", damaged_inside, "a.png': damaged or cut short"),
    "sample that is no number": ("a.wav", one_nan, "a.wav': sample 1234 is nan; every sample must be a finite number"),
}
