# SPDX-License-Identifier: Apache-2.0
"""How long an MP3 is: its frames counted, because it need not say.

Without a count of its frames in the first one, a decoder guesses the length from the size of the file, and
of several files joined it believes the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KILOBITS = {  # by version (1, or 2 with its half 2.5) and layer; the index comes from the header
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
HERTZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
SAME_BITS = 0xFFFE0C00  # synchronisation, version, layer and rate: alike in all frames of a stream
HEADER_BYTES, TAG = 4, b"ID3"
FRAME_OR_TAG = re.compile(rb"\xff|ID3")
TRIMMED_FRAMES = 5  # the tag's own frame, and what the encoder put before and behind the sound
ESTIMATE = 0.01  # how far a guess from the size may be off, where all frames are of one size but for a byte


@dataclass(frozen=True)
class FrameCount:
    """Frames that are there, samples of each, and whether the file says their number itself."""

    frames: int
    samples_per_frame: int
    said: bool

    @property
    def samples(self) -> int:
        """Samples of each channel, with what players leave out at both ends."""
        return self.frames * self.samples_per_frame

    def agree_with(self, samples: int) -> bool:
        """Whether a decoder that believes in this many samples plays the file to its end, and no further."""
        allowed = TRIMMED_FRAMES * self.samples_per_frame + (0 if self.said else ESTIMATE * self.samples)
        return abs(self.samples - samples) <= allowed


@dataclass(frozen=True)
class Frame:
    """What a frame's header says."""

    size: int  # bytes
    samples: int


def count_frames(content: bytes) -> FrameCount | None:
    """The frames of a whole file; None if no stream of frames is found, or one whose sizes are not in its headers.

    Source: ISO/IEC 11172-3 §2.4.2.3 and ISO/IEC 13818-3, the header of an audio frame.
    """
    first, same, opening, count = None, 0, b"", 0
    place = 0
    while place + HEADER_BYTES <= len(content):
        if content.startswith(TAG, place):
            place += tag_size(content, place)
            continue
        frame = frame_at(content, place)
        if first is None and frame is not None and begins_stream(content, place, frame):
            first, same, opening = frame, word(content, place) & SAME_BITS, content[place : place + frame.size]
        if first is None or frame is None or word(content, place) & SAME_BITS != same:
            found = FRAME_OR_TAG.search(content, place + 1)
            place = found.start() if found else len(content)
        else:
            count += place + frame.size <= len(content)
            place += frame.size
    return None if first is None else FrameCount(count, first.samples, said=b"Xing" in opening or b"Info" in opening)


def begins_stream(content: bytes, place: int, frame: Frame) -> bool:
    """Whether another one like it, or nothing, follows what looks like a frame."""
    behind = place + frame.size
    return behind >= len(content) or (word(content, behind) ^ word(content, place)) & SAME_BITS == 0


def tag_size(content: bytes, place: int) -> int:
    """Bytes of an ID3 tag, in which pictures and texts look like frames."""
    size = 0
    for byte in content[place + 6 : place + 10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def frame_at(content: bytes, place: int) -> Frame | None:
    """The frame whose header stands at a place; None if none does."""
    header = word(content, place)
    version_bits, layer, rate = header >> 19 & 3, 4 - (header >> 17 & 3), header >> 10 & 3
    kilobits, padding = (header >> 12 & 15) - 1, header >> 9 & 1
    if header >> 21 != 0x7FF or version_bits == 1 or layer == 4 or rate == 3 or not 0 <= kilobits < 14:
        return None
    version = 1 if version_bits == 3 else 2
    bits, hertz = KILOBITS[version, layer][kilobits] * 1000, HERTZ[version_bits][rate]
    if layer == 1:
        return Frame((12 * bits // hertz + padding) * 4, 384)
    samples = 576 if (version, layer) == (2, 3) else 1152
    return Frame(samples // 8 * bits // hertz + padding, samples)


def word(content: bytes, place: int) -> int:
    """Four bytes as a number; too small for a header where fewer are left."""
    return int.from_bytes(content[place : place + 4], "big")
