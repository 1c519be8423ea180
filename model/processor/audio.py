# SPDX-License-Identifier: Apache-2.0
"""Recordings to the log-mel frames that the audio tower hears.

Every clip is prepared alone: how many frames it has, and what is in them, never depends on its neighbours
in a batch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np
import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from model.errors import InputError
from model.processor.media import Header, Recording
from model.processor.settings import AudioSettings, as_json

MAX_SECONDS = 30.0  # what the model was trained on; Gemma 3n model card
MAX_FRAMES = 3008  # 188 soft tokens of 16 frames
PADDED_SAMPLES = 128  # the reference fills a clip up to a multiple of these


class LongAudio(StrEnum):
    """What becomes of a recording that is too long for one clip."""

    refuse = "refuse"
    truncate = "truncate"  # its beginning is kept
    chunk = "chunk"  # it becomes several clips, each with its own run of placeholders


@dataclass(frozen=True)
class AudioProcessor:
    """Resamples a recording and takes its log-mel spectrum.

    ``max_frames`` is what the run of placeholders has room for, ``long_key`` what a user sets ``long`` with.
    """

    settings: AudioSettings = field(default_factory=AudioSettings)
    max_frames: int = MAX_FRAMES
    long: LongAudio = LongAudio.refuse
    long_key: str = field(default="long_audio", compare=False)

    @property
    def min_samples(self) -> int:
        """The shortest clip, in samples at the model's rate: one frame."""
        return self.settings.frame_length + 1

    @property
    def max_seconds(self) -> float:
        """The longest clip."""
        whole = (self.max_frames - 1) * self.settings.hop_length + self.min_samples
        room = (whole // PADDED_SAMPLES) * PADDED_SAMPLES
        return min(MAX_SECONDS, room / self.settings.sampling_rate)

    def split(self, recording: Recording) -> tuple[Recording, ...]:
        """The clips that a recording becomes, from its header alone: itself, if it is not too long.

        Raises:
            InputError: It cannot be read, is shorter than one frame, or too long and to be refused.
        """
        return self._pieces(recording, recording.header())

    def __call__(self, recording: Recording) -> Float[Tensor, "frames mels"]:
        """The log-mel frames of one clip.

        Raises:
            InputError: The recording cannot be decoded, or is too short or too long for a clip; see ``split``.

        Source: transformers' ``Gemma3nAudioFeatureExtractor`` (Universal Speech Model, arXiv:2303.01037), given
        this clip alone. It makes no frames of less than one frame's samples, and cuts off what is beyond 30 s.
        """
        wave = recording.decode(lambda header: self._check_whole(recording, header))
        samples = wave.samples
        if wave.sample_rate_hz != self.settings.sampling_rate:
            samples = soxr.resample(samples, wave.sample_rate_hz, self.settings.sampling_rate, quality="HQ")
        if len(samples) < self.min_samples:
            raise InputError(
                f"{recording}: has {len(samples)} samples at {self.settings.sampling_rate} Hz, less than one frame;"
                f" at least {self.min_samples} are needed"
            )
        return torch.from_numpy(log_mel(samples, self.settings))

    def _pieces(self, recording: Recording, header: Header) -> tuple[Recording, ...]:
        if round(header.seconds * self.settings.sampling_rate) < self.min_samples:
            raise InputError(
                f"{recording}: lasts {header.seconds:.3f} s, less than one frame; it has {header.num_samples} samples"
                f" at {header.sample_rate_hz} Hz, and at least {self.min_samples} at {self.settings.sampling_rate} Hz"
                " are needed"
            )
        longest = math.floor(self.max_seconds * header.sample_rate_hz)
        if header.num_samples <= longest:
            return (recording,)
        if self.long is LongAudio.refuse:
            raise InputError(
                f"{recording}: lasts {header.seconds:.2f} s, but a clip has at most {self.max_seconds:g} s; shorten it,"
                f" or say {self.long_key}=truncate (its beginning is used) or {self.long_key}=chunk (several clips);"
                f" it has {header.num_samples} samples, of which {longest} fit"
            )
        first = recording.start
        if self.long is LongAudio.truncate:
            return (replace(recording, stop=first + longest),)
        # Evenly, so that no scrap is left at the end.
        pieces = math.ceil(header.num_samples / longest)
        cuts = [first + header.num_samples * piece // pieces for piece in range(pieces + 1)]
        return tuple(replace(recording, start=a, stop=b) for a, b in itertools.pairwise(cuts))

    def _check_whole(self, recording: Recording, header: Header) -> None:
        if self._pieces(recording, header) != (recording,):
            raise InputError(f"{recording}: is too long for one clip; it must be split before it is rendered")

    @property
    def fingerprint(self) -> str:
        """A hash of what is done to a recording: equal where the same recording gives the same frames."""
        return hashlib.sha256(json.dumps(as_json(self.settings), sort_keys=True).encode()).hexdigest()


def log_mel(samples: Float[np.ndarray, " samples"], settings: AudioSettings) -> Float[np.ndarray, "frames mels"]:
    """The natural logarithm of a clip's mel spectrum (of magnitudes, not powers), filled up with silence at its end."""
    padded = np.pad(samples, (0, -len(samples) % PADDED_SAMPLES)) * np.float32(settings.input_scale_factor)
    frames = np.lib.stride_tricks.sliding_window_view(padded, settings.frame_length + 1)[:: settings.hop_length]
    spectrum = np.abs(np.fft.rfft(emphasised(frames, settings) * hann(settings.frame_length), n=settings.fft_length))
    mel = np.log(np.maximum(spectrum @ mel_filters(settings), settings.mel_floor))
    if settings.per_bin_mean is not None:
        mel = mel - np.asarray(settings.per_bin_mean)
    if settings.per_bin_stddev is not None:
        mel = mel / np.asarray(settings.per_bin_stddev)
    return mel.astype(np.float32)


def emphasised(
    frames: Float[np.ndarray, "frames longer"], settings: AudioSettings
) -> Float[np.ndarray, "frames samples"]:
    """Each frame less a part of itself one sample earlier, which raises high frequencies.

    HTK's way leaves no sample outside the frame: the first is scaled, and the one too many at the end unused.
    """
    if settings.preemphasis <= 0:
        return frames[:, :-1]
    earlier = settings.preemphasis * frames[:, :-1]
    if not settings.preemphasis_htk_flavor:
        return frames[:, 1:] - earlier
    first = frames[:, :1] * (1 - settings.preemphasis)
    return np.concatenate([first, frames[:, 1:-1] - earlier[:, :-1]], axis=1)


def hann(length: int) -> Float[np.ndarray, " samples"]:
    """The periodic Hann window, in single precision like the reference's."""
    return (0.5 * (1 - np.cos(2 * np.pi * np.arange(length, dtype=np.float32) / length))).astype(np.float32)


@lru_cache
def mel_filters(settings: AudioSettings) -> Float[np.ndarray, "frequencies mels"]:
    """Overlapping triangles, evenly spaced in mels (HTK's formula), their peaks at 1."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (settings.min_frequency, settings.max_frequency))
    corners = 700 * (10 ** (np.linspace(low, high, settings.feature_size + 2) / 2595) - 1)
    hertz = np.arange(settings.fft_length // 2 + 1) * (settings.sampling_rate / settings.fft_length)
    rising = (hertz[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - hertz[:, None]) / np.diff(corners)[1:]
    return np.maximum(0, np.minimum(rising, falling))
