# SPDX-License-Identifier: Apache-2.0
"""The demo's speech: the numbers 0 to 9 in English, French and Italian.

Learnt from synthetic voices and from two people, each of whose ten recordings is heard many times in other
guises; measured on recordings of people who were not heard in training. All of it has the quality of a telephone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from recipes.demo_espeak import ACCENTS, Synthesizer
from recipes.demo_packages import package_directory
from recipes.demo_text import Split

SAMPLE_RATE_HZ = 8_000
MAX_SECONDS = 1.0
FRAME = 80  # samples, 10 ms
QUIET = 0.02  # of the loudest frame: what is softer before and behind the word is silence
RECORDINGS = Path(__file__).parent / "recordings"
HEARD = ("french_armelle", "italian_paola")  # in training
UNHEARD = ("english_allison", "french_june", "italian_carlo")
CAPTCHA = "captcha"  # a package with ten recordings of digits in English
VOICES_HELD_OUT = 10  # one synthetic voice in so many is not for training


@dataclass(frozen=True)
class Clip:
    """Somebody says a number from 0 to 9."""

    digit: int
    path: Path


@dataclass
class Studio:
    """Writes clips into a directory, always the same ones but for the breath of synthetic voices."""

    directory: Path
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def synthesize(self, count: int, split: Split) -> Iterator[Clip]:
        """Numbers in turn, each in a voice, at a speed and over a line drawn by lot."""
        synthesizer = Synthesizer()
        held_out = set(synthesizer.variants[::VOICES_HELD_OUT])
        variants = [name for name in synthesizer.variants if (name in held_out) is (split is not Split.train)]
        languages = list(ACCENTS)
        for index in range(count):
            accents = ACCENTS[languages[self.rng.integers(len(languages))]]
            spoken = synthesizer.say(
                str(index % 10),
                accent=accents[self.rng.integers(len(accents))],
                variant=variants[self.rng.integers(len(variants))],
                words_per_minute=int(self.rng.integers(110, 280)),
                pitch=int(self.rng.integers(20, 80)),
            )
            samples = trimmed(soxr.resample(spoken, synthesizer.sample_rate_hz, SAMPLE_RATE_HZ))
            yield self.write(f"voice_{split}_{index:05}", index % 10, disguised(samples, self.rng))

    def imitate(self, copies: int) -> Iterator[Clip]:
        """The recordings of the people heard in training, each at ``copies`` speeds and over as many lines."""
        for speaker in HEARD:
            for clip in recordings(RECORDINGS / speaker):
                samples, _ = soundfile.read(clip.path, dtype="float32")
                for copy in range(copies):
                    speed = self.rng.uniform(0.75, 1.3)
                    other = trimmed(soxr.resample(samples, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ / speed))
                    yield self.write(f"{speaker}_{clip.digit}_{copy:03}", clip.digit, disguised(other, self.rng))

    def write(self, name: str, digit: int, samples: Float[np.ndarray, " samples"]) -> Clip:
        """A file for a clip."""
        path = self.directory / f"{name}.wav"
        soundfile.write(path, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        return Clip(digit, path)


def unheard_people() -> list[tuple[str, list[Clip]]]:
    """The recordings to be measured on, speaker by speaker.

    Raises:
        InputError: The package with some of them is not installed.
    """
    data = package_directory(CAPTCHA, carries="recorded digits") / "data"
    speakers = [(speaker, recordings(RECORDINGS / speaker)) for speaker in UNHEARD]
    clips = [Clip(digit, data / str(digit) / "default.wav") for digit in range(10)]
    return [*speakers, ("english_captcha", clips)]


def recordings(directory: Path) -> list[Clip]:
    """One person's ten numbers."""
    return [Clip(digit, directory / f"{digit}.flac") for digit in range(10)]


def trimmed(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Without the silence before and behind the word."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    loudness = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(loudness > QUIET * loudness.max())
    return samples[loud[0] * FRAME : (loud[-1] + 1) * FRAME]


def disguised(samples: Float[np.ndarray, " samples"], rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """A word over another line: other bass and treble, loudness, noise, and silence around it.

    Without this, a model that has only heard a synthesiser does not understand people.
    """
    hertz = np.maximum(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ), 1)
    tilt_db = rng.uniform(-6, 6) * np.log2(np.maximum(hertz, 100) / 1000)  # per octave
    lowest, highest = rng.uniform(0, 300), rng.uniform(3000, 4000)
    gain = 10 ** (tilt_db / 20) / np.sqrt((1 + (lowest / hertz) ** 4) * (1 + (hertz / highest) ** 8))
    line = np.fft.irfft(np.fft.rfft(samples) * gain, len(samples))
    room = max(int(MAX_SECONDS * SAMPLE_RATE_HZ) - len(line), 0)
    before, behind = (int(min(rng.uniform(0, 0.15) * SAMPLE_RATE_HZ, room / 2)) for _ in range(2))
    padded = np.pad(line / np.abs(line).max() * rng.uniform(0.2, 0.9), (before, behind))
    noise = rng.normal(0, 10 ** rng.uniform(-4.5, -2), len(padded))
    return np.clip(padded + noise, -1, 1)[: int(MAX_SECONDS * SAMPLE_RATE_HZ)].astype(np.float32)
