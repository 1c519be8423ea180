# SPDX-License-Identifier: Apache-2.0
"""Pictures and recordings as a conversation refers to them, and how their files are read.

A reference costs nothing until it is decoded, so data sets of files can be checked and shuffled as they
are. Decoding gives plain pixels and plain samples; what the model wants of them is in ``image`` and ``audio``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from model.errors import InputError
from model.processor.image_file import check_file, check_pixels, check_size, opened_image, upright_rgb
from model.processor.sound_file import check_samples, full_scale, opened_sound, read_part
from model.processor.source import as_bytes, contents, digest_of, identity, named


@dataclass(frozen=True, eq=False)
class Picture:
    """An image to be read later: a file, a file's bytes, a Pillow image, or an array.

    Arrays are (height, width) or (height, width, 1, 3 or 4): whole numbers of 8 or 16 bits, or fractions in [0, 1].
    Two pictures of the same path or bytes are equal; images and arrays are equal to themselves alone.
    """

    source: Path | str | bytes | Image.Image | np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", as_bytes(self.source))
        if not isinstance(self.source, Path | str | bytes | Image.Image | np.ndarray):
            raise InputError(
                f"image: is of type {type(self.source).__name__}; it must be a path, a file's bytes, a Pillow image or"
                " a NumPy array"
            )

    def __str__(self) -> str:
        return named("image", self.source)

    def __repr__(self) -> str:
        return f"Picture({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and identity(self.source) == identity(other.source)

    def __hash__(self) -> int:
        return hash(identity(self.source))

    def check(self) -> None:
        """Whether there is an image, of a known kind and a size that can be decoded, and no file that was cut short.

        Of a file the header is read, and of PNG and JPEG the end; a file without its end is decoded, to see
        what is missing. Damage in the middle, and other kinds cut short, show only when they are decoded.

        Raises:
            InputError: There is none, or it is too large, or its end is missing.
        """
        if isinstance(self.source, np.ndarray):
            check_pixels(self.source, str(self))
        elif isinstance(self.source, Image.Image):
            check_size(self.source, str(self))
        else:
            check_file(self.source, str(self))

    def decode(self) -> Image.Image:
        """The picture in RGB, upright; of an animation the first frame.

        What shows through is white, as in the reference. Two things the reference does not do: an image handed
        over as such is turned upright too, as one of a file is (EXIF); and 16 bits of grey become 8, not all white.

        Raises:
            InputError: There is no image, or it is damaged, too large, or of values without a known range.
        """
        if isinstance(self.source, np.ndarray):
            return upright_rgb(Image.fromarray(check_pixels(self.source, str(self))), str(self))
        if isinstance(self.source, Image.Image):
            check_size(self.source, str(self))
            return upright_rgb(self.source, str(self))
        with opened_image(self.source, str(self)) as image:
            return upright_rgb(image, str(self))

    def digest(self) -> str:
        """A hash of the content, the same wherever the content lies.

        Raises:
            InputError: The file is missing or empty, or an image in memory cannot be used.
        """
        if isinstance(self.source, Image.Image):
            seen = self.decode()  # an image's own bytes leave out its palette, and how it is turned
            return digest_of(f"{seen.size}", seen.tobytes())
        if isinstance(self.source, np.ndarray):
            return digest_of(f"{self.source.dtype.str} {self.source.shape}", self.source.tobytes())
        return digest_of("", contents(self.source, str(self)))


@dataclass(frozen=True)
class Waveform:
    """One channel of sound; full scale is 1."""

    samples: Float[np.ndarray, " samples"]
    sample_rate_hz: int


@dataclass(frozen=True)
class Header:
    """What a sound file says of itself: samples of each channel, and how many are a second."""

    num_samples: int
    sample_rate_hz: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.num_samples / self.sample_rate_hz


@dataclass(frozen=True, eq=False)
class Recording:
    """A sound to be read later: a file, a file's bytes, or an array, whole or the samples from ``start`` to ``stop``.

    Arrays are (samples,) or (samples, channels), whole numbers of 16 or 32 bits or fractions of full scale, and
    need ``sample_rate_hz``; a file says its own. ``start`` and ``stop`` count at the source's rate.
    Equality is that of ``Picture``.
    """

    source: Path | str | bytes | np.ndarray
    sample_rate_hz: int | None = None
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", as_bytes(self.source))
        if not isinstance(self.source, Path | str | bytes | np.ndarray):
            raise InputError(
                f"recording: is of type {type(self.source).__name__}; it must be a path, a file's bytes or a NumPy"
                " array"
            )
        for name, value in (("sample_rate_hz", self.sample_rate_hz), ("start", self.start), ("stop", self.stop)):
            optional = name != "start" and value is None
            if not optional and (not isinstance(value, int | np.integer) or isinstance(value, bool)):
                raise InputError(f"{named('recording', self.source)}: {name} is {value!r}; it must be a whole number")
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise InputError(f"{self}: start must be 0 or more, and stop more than start")

    def __str__(self) -> str:
        name = named("recording", self.source)
        return name if self.start == 0 and self.stop is None else f"{name} [{self.start}:{self.stop}]"

    def __repr__(self) -> str:
        return f"Recording({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recording) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return identity(self.source), self.sample_rate_hz, self.start, self.stop

    def header(self) -> Header:
        """How long the part referred to is, without decoding it; also the check of a file before it is needed.

        Of an MP3 the whole file is read, to count its frames.

        Raises:
            InputError: There is no sound of a known kind, it is empty, not as long as it says, or its sample rate
                is unknown.
        """
        with self._opened() as (header, _):
            return header

    def check(self) -> None:
        """Whether there is a sound that can be decoded; raises InputError as ``header`` does."""
        self.header()

    def decode(self, accept: Callable[[Header], object] | None = None) -> Waveform:
        """The mean of the channels, at the source's own sample rate.

        A file cut short is noticed, but for Opus, which does not say how long it was.

        Args:
            accept: Called with the header before anything is decoded; what it raises goes through.

        Raises:
            InputError: As ``header``; or the sound is damaged, or some sample is not a finite number.
        """
        with self._opened() as (header, read):
            if accept is not None:
                accept(header)
            samples = read(self.start, header.num_samples)
        mono = samples.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            bad = int(np.flatnonzero(~np.isfinite(mono))[0])
            raise InputError(f"{self}: sample {bad} is {mono[bad]}; every sample must be a finite number")
        return Waveform(mono, header.sample_rate_hz)

    def digest(self) -> str:
        """A hash of the content and of the part referred to, the same wherever the content lies.

        Raises:
            InputError: The file is missing or empty.
        """
        part = f"{self.start} {self.stop} {self.sample_rate_hz}"
        if isinstance(self.source, np.ndarray):
            return digest_of(f"{part} {self.source.dtype.str} {self.source.shape}", self.source.tobytes())
        return digest_of(part, contents(self.source, str(self)))

    @contextmanager
    def _opened(self) -> Iterator[tuple[Header, Callable[[int, int], np.ndarray]]]:
        """The header of the part, and what reads samples by where they begin and how many they are."""
        if isinstance(self.source, np.ndarray):
            array = check_samples(self.source, str(self))
            yield self._part(len(array), self._array_rate()), lambda at, count: full_scale(array[at : at + count])
            return
        with opened_sound(self.source, str(self)) as sound:
            if self.sample_rate_hz not in (None, sound.samplerate):
                raise InputError(
                    f"{self}: sample_rate_hz is {self.sample_rate_hz}, but the file says {sound.samplerate};"
                    " leave it out for files"
                )
            header = self._part(sound.frames, sound.samplerate)
            yield header, lambda at, count: read_part(sound, at, count, str(self))

    def _part(self, num_samples: int, sample_rate_hz: int) -> Header:
        part = len(range(num_samples)[self.start : self.stop])
        if part == 0:
            raise InputError(f"{self}: no samples; a recording needs some sound")
        return Header(part, sample_rate_hz)

    def _array_rate(self) -> int:
        if self.sample_rate_hz is None:
            raise InputError(f"{self}: an array does not say its sample rate; give sample_rate_hz")
        if self.sample_rate_hz <= 0:
            raise InputError(f"{self}: sample_rate_hz is {self.sample_rate_hz}; it must be positive")
        return self.sample_rate_hz
