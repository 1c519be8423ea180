# SPDX-License-Identifier: Apache-2.0
"""An MP3 is as long as its frames say, and one of which only a part would be read is refused."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import soundfile

from model.errors import InputError
from model.processor.media import Recording
from model.processor.mp3 import count_frames, frame_at

NOISE = np.random.default_rng(0).normal(0, 0.2, 48_000 * 20).astype(np.float32)


def mp3(samples: np.ndarray, rate: int, mode: str = "CONSTANT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.4)
    return buffer.getvalue()


def loud_then_quiet(rate: int) -> np.ndarray:
    return np.concatenate([NOISE[: rate * 5], np.zeros(rate * 5, np.float32)])


def without_first_frame(content: bytes) -> bytes:
    """The frame that says how many there are."""
    frame = frame_at(content, 0)
    assert frame is not None
    assert any(word in content[: frame.size] for word in (b"Xing", b"Info"))
    return content[frame.size :]


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("seconds", [0.05, 1, 8])
def test_a_file_that_says_its_length_is_read(rate: int, mode: str, seconds: float) -> None:
    samples = NOISE[: round(rate * seconds)]
    recording = Recording(mp3(samples, rate, mode))
    assert recording.header().num_samples == len(recording.decode().samples) == len(samples)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_a_file_of_frames_of_one_size_need_not_say_it(rate: int) -> None:
    recording = Recording(without_first_frame(mp3(NOISE[: rate * 10], rate)))
    assert recording.header().seconds == pytest.approx(10, abs=0.3)
    assert abs(len(recording.decode().samples) / rate - 10) < 0.3


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_length_guessed_wrong_is_refused(rate: int, direction: int) -> None:
    content = without_first_frame(mp3(loud_then_quiet(rate)[::direction], rate, "VARIABLE"))
    with pytest.raises(InputError, match=r"holds 10\.\d+ s of sound, but seems to last .*convert it to WAV or FLAC"):
        Recording(content).header()


def test_files_joined_from_several_are_refused() -> None:
    with pytest.raises(InputError, match=r"holds 6\.\d+ s of sound, but seems to last 3\.00 s; .*joined from several"):
        Recording(mp3(NOISE[:48_000], 16_000) * 2).decode()


def test_a_file_cut_short_is_refused() -> None:
    content = mp3(NOISE[:48_000], 16_000)
    with pytest.raises(InputError, match="it is cut short"):
        Recording(content[: len(content) // 2]).header()


def test_tags_are_no_frames() -> None:
    content = mp3(NOISE[:48_000], 16_000)
    frames = count_frames(content)
    looks_like_frames = content[:2000]
    tag = b"ID3\x04\0\0" + bytes([0, 0, len(looks_like_frames) >> 7, len(looks_like_frames) & 127])
    assert frames is not None
    assert count_frames(tag + looks_like_frames + content + b"TAG" + bytes(125)) == frames
    assert count_frames(tag + looks_like_frames + content * 2) != frames
    assert count_frames(content + tag + looks_like_frames + content) == count_frames(content * 2)


@pytest.mark.parametrize("content", [b"", b"ID3", b"\xff" * 5000, b"no sound" * 100, bytes(range(256)) * 20])
def test_what_is_no_mp3_has_no_frames(content: bytes) -> None:
    assert count_frames(content) is None


def test_a_part_far_behind_needs_no_memory_for_what_is_before_it() -> None:
    content = mp3(np.tile(NOISE[:80_000], 20), 8000)  # 200 s
    whole = Recording(content)
    start = whole.header().num_samples - 8000
    tracemalloc.start()
    part = Recording(content, start=start).decode()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(part.samples) == 8000
    assert peak < 2 * start  # bytes; all that is before it has twice as many
