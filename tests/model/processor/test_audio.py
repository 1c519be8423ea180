# SPDX-License-Identifier: Apache-2.0
"""Clips are as long as they should be, sound the same at every rate, and are refused when they cannot be heard."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import ConfigError, InputError
from model.processor.audio import AudioProcessor, LongAudio
from model.processor.media import Recording
from model.processor.settings import AudioSettings
from tests.tiny_processor import RECORDINGS

RATE = 16_000
PROCESSOR = AudioProcessor()


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("samples", "frames"), [(513, 1), (640, 1), (641, 2), (16_000, 97), (480_000, 2997)])
def test_a_clip_is_filled_up_and_has_a_frame_every_hop(samples: int, frames: int) -> None:
    assert PROCESSOR(Recording(np.zeros(samples, np.float32), RATE)).shape == (frames, 128)


def test_silence_is_the_floor() -> None:
    frames = PROCESSOR(Recording(np.zeros(RATE), RATE))
    torch.testing.assert_close(frames, torch.full_like(frames, np.log(1e-5)))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_a_tone_sounds_the_same_at_every_rate(rate: int) -> None:
    expected = PROCESSOR(Recording(tone(1), RATE))
    heard = PROCESSOR(Recording(tone(1, rate), rate))
    loudest = expected[5:-5].mean(0).argmax()
    assert heard[5:-5].mean(0).argmax() == loudest
    # Away from the ends, where the resampler has nothing before or after; other bins hold only its noise.
    torch.testing.assert_close(heard[10:80, loudest], expected[10:80, loudest], atol=1e-3, rtol=0)


def test_both_channels_are_heard() -> None:
    left = np.stack([tone(1), np.zeros_like(tone(1))], axis=1)
    torch.testing.assert_close(PROCESSOR(Recording(left, RATE)), PROCESSOR(Recording(tone(1) / 2, RATE)))


@pytest.mark.parametrize("samples", [1, 512])
def test_less_than_a_frame_is_refused_by_the_header(samples: int) -> None:
    with pytest.raises(InputError, match=rf"less than one frame; it has {samples} samples at 16000 Hz, and at"):
        PROCESSOR.split(Recording(np.zeros(samples), RATE))


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_more_than_thirty_seconds_are_refused_by_the_header(rate: int) -> None:
    PROCESSOR.split(Recording(np.zeros(30 * rate, np.float32), rate))
    with pytest.raises(InputError, match=r"lasts 30\.\d+ s, but a clip has at most 30 s; .*truncate.*chunk"):
        PROCESSOR.split(Recording(np.zeros(30 * rate + rate // 10, np.float32), rate))
    with pytest.raises(InputError, match="at most 30 s"):
        PROCESSOR(Recording(np.zeros(30 * rate + 1, np.float32), rate))


def test_one_sample_too_many_is_told_in_samples() -> None:
    with pytest.raises(InputError, match="it has 480001 samples, of which 480000 fit"):
        PROCESSOR.split(Recording(np.zeros(30 * RATE + 1, np.float32), RATE))


@pytest.mark.parametrize("max_frames", [12 * 16, 188 * 16])
def test_the_longest_clip_has_no_frame_too_many_at_any_rate(max_frames: int) -> None:
    processor = AudioProcessor(max_frames=max_frames)
    for rate in (8000, 11_025, 12_345, 44_100, 47_999):
        longest = int(processor.max_seconds * rate)
        frames = len(processor(Recording(np.zeros(longest, np.float32), rate)))
        assert max_frames - 12 <= frames <= max_frames


def test_thirty_seconds_fill_all_their_soft_tokens_at_any_rate() -> None:
    for rate in (8000, 44_100):
        assert len(PROCESSOR(Recording(np.zeros(30 * rate, np.float32), rate))) == 2997


def test_a_long_recording_may_be_cut_to_its_beginning() -> None:
    processor = AudioProcessor(long=LongAudio.truncate)
    whole = Recording(tone(31), RATE)
    (clip,) = processor.split(whole)
    assert torch.equal(processor(clip), PROCESSOR(Recording(tone(31)[: 30 * RATE], RATE)))
    (later,) = processor.split(Recording(tone(41), RATE, start=4000))
    assert (later.start, later.header().num_samples) == (4000, 30 * RATE)
    with pytest.raises(InputError, match="must be split before it is rendered"):
        processor(whole)


@pytest.mark.parametrize("seconds", [30.001, 61, 95])
def test_a_long_recording_may_become_even_clips(seconds: float) -> None:
    processor = AudioProcessor(long=LongAudio.chunk)
    whole = Recording(tone(seconds), RATE, start=100)
    clips = processor.split(whole)
    assert len(clips) == -(-(round(seconds * RATE) - 100) // (30 * RATE))
    joined = np.concatenate([clip.decode().samples for clip in clips])
    np.testing.assert_array_equal(joined, whole.decode().samples)
    lengths = [clip.header().num_samples for clip in clips]
    assert max(lengths) - min(lengths) <= 1


def test_a_short_recording_stays_itself() -> None:
    for long in LongAudio:
        recording = Recording(RECORDINGS[0])
        assert AudioProcessor(long=long).split(recording) == (recording,)


def test_clips_fit_into_the_placeholders_there_are() -> None:
    processor = AudioProcessor(max_frames=12 * 16)
    longest = round(processor.max_seconds * RATE)
    assert 12 * 16 - 1 <= len(processor(Recording(np.zeros(longest), RATE))) <= 12 * 16
    with pytest.raises(InputError, match=r"a clip has at most 1\.9\d* s"):
        processor.split(Recording(np.zeros(longest + 160), RATE))


def test_a_clip_does_not_depend_on_being_a_file_or_an_array() -> None:
    for path in RECORDINGS[:3]:
        wave = Recording(path).decode()
        assert torch.equal(PROCESSOR(Recording(path)), PROCESSOR(Recording(wave.samples, wave.sample_rate_hz)))


def test_the_fingerprint_is_of_the_settings() -> None:
    assert PROCESSOR.fingerprint == AudioProcessor().fingerprint
    assert PROCESSOR.fingerprint != AudioProcessor(AudioSettings(mel_floor=1e-4)).fingerprint


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"dither": 0.1}, "dither is 0.1"),
        ({"sampling_rate": "16k"}, "sampling_rate is '16k'"),
        ({"max_frequency": 9000.0}, r"rise within 0 to 8000"),
        ({"feature_size": 0}, "feature_size is 0"),
        ({"frame_length": 400}, "frame_length is 400, but the other values make it 512"),
        ({"per_bin_mean": [1.0]}, "list of 128"),
        ({"fft_overdrive": 1}, "true or false"),
        ({"mel_floor": float("nan")}, "mel_floor is nan; it must be finite"),
        ({"padding_value": 1.0}, "padding_value is 1.0; only 0 is read"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "feature_extractor_type is 'Whisper"),
    ],
)
def test_settings_that_cannot_be_are_refused(published: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AudioSettings.parse(published)


def test_settings_survive_being_published() -> None:
    settings = dataclasses.replace(AudioSettings(), feature_size=3, per_bin_mean=(1.0, 2.0, 3.0), fft_overdrive=False)
    assert AudioSettings.parse(settings.publish()) == settings
    assert AudioSettings.parse({}) == AudioSettings.parse(AudioSettings().publish()) == AudioSettings()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.wav': no such file"):
        PROCESSOR(Recording(tmp_path / "gone.wav"))
