# SPDX-License-Identifier: Apache-2.0
"""Pictures and recordings as a conversation refers to them, and how their files are read.

A reference costs nothing until it is decoded, so data sets of files can be checked and shuffled as they
are. Decoding gives plain pixels and plain samples; what the model wants of them is in ``image`` and ``audio``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float, Shaped
from PIL import Image, ImageOps

from model.errors import InputError
from model.processor.source import contents, digest_of, identity, named, opened

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
MAX_PIXELS = 100_000_000  # 300 MB once decoded; a bomb of a few kilobytes can claim any size
MAX_CHANNELS = 32  # more columns than this are samples lying the wrong way round
PCM_SCALE = {np.dtype(np.int16): 2**15, np.dtype(np.int32): 2**31}  # full scale, as sound files have it
UNKNOWN_BYTES = 2**31 - 2**16  # from here on, a size in a WAV header means "until the end"


@dataclass(frozen=True, eq=False)
class Picture:
    """An image to be read later: a file, a file's bytes, a Pillow image, or an array.

    Arrays are (height, width) or (height, width, 1, 3 or 4): whole numbers of 8 or 16 bits, or fractions in [0, 1].
    Two pictures of the same path or bytes are equal; images and arrays are equal to themselves alone.
    """

    source: Path | str | bytes | Image.Image | np.ndarray

    def __str__(self) -> str:
        return named("image", self.source)

    def __repr__(self) -> str:
        return f"Picture({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and identity(self.source) == identity(other.source)

    def __hash__(self) -> int:
        return hash(identity(self.source))

    def check(self) -> None:
        """Read no more than the header: whether there is an image, of a known kind and a size that can be decoded.

        Raises:
            InputError: There is none, or it is too large.
        """
        if isinstance(self.source, np.ndarray):
            check_pixels(self.source, str(self))
        elif isinstance(self.source, Image.Image):
            check_size(self.source, str(self))
        else:
            with opened_image(self.source, str(self)):
                pass

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

        Raises:
            InputError: There is no sound of a known kind, it is empty, or its sample rate is unknown.
        """
        if isinstance(self.source, np.ndarray):
            whole = Header(len(check_samples(self.source, str(self))), self._array_rate())
        else:
            with opened_sound(self.source, str(self)) as sound:
                whole = Header(sound.frames, sound.samplerate)
                check_complete(sound, str(self))
            if self.sample_rate_hz not in (None, whole.sample_rate_hz):
                raise InputError(
                    f"{self}: sample_rate_hz is {self.sample_rate_hz}, but the file says {whole.sample_rate_hz};"
                    " leave it out for files"
                )
        num_samples = len(range(whole.num_samples)[self.start : self.stop])
        if num_samples == 0:
            raise InputError(f"{self}: no samples; a recording needs some sound")
        return Header(num_samples, whole.sample_rate_hz)

    def check(self) -> None:
        """Read no more than the header; raises InputError as ``header`` does."""
        self.header()

    def decode(self) -> Waveform:
        """The mean of the channels, at the source's own sample rate.

        A file cut short is noticed, but for MP3 and Opus, which do not say how long they were.

        Raises:
            InputError: As ``header``; or the sound is damaged, or some sample is not a finite number.
        """
        header = self.header()
        if isinstance(self.source, np.ndarray):
            samples = full_scale(check_samples(self.source, str(self))[self.start : self.stop])
        else:
            with opened_sound(self.source, str(self)) as sound:
                # An MP3 finds a place only roughly, so that one is read from its beginning.
                skipped = self.start if sound.format == "MP3" else 0
                sound.seek(self.start - skipped)
                samples = sound.read(skipped + header.num_samples, dtype="float32", always_2d=True)[skipped:]
            if len(samples) < header.num_samples and sound.format != "MP3":  # an MP3 only estimates its length
                raise InputError(
                    f"{self}: damaged or cut short; the file promises {header.num_samples} samples and holds"
                    f" {len(samples)}; make or fetch it again"
                )
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

    def _array_rate(self) -> int:
        if self.sample_rate_hz is None:
            raise InputError(f"{self}: an array does not say its sample rate; give sample_rate_hz")
        if self.sample_rate_hz <= 0:
            raise InputError(f"{self}: sample_rate_hz is {self.sample_rate_hz}; it must be positive")
        return self.sample_rate_hz


@contextmanager
def opened_image(source: Path | str | bytes, name: str) -> Iterator[Image.Image]:
    """An image of which the header alone is read, closed afterwards.

    Raises:
        InputError: There is none, or it is too large.
    """
    with opened(source, name) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is refused here, or of no consequence for pixels
        try:
            image = Image.open(file, formats=formats())
        except Image.DecompressionBombError as error:
            told = str(error).rstrip(".")
            raise InputError(f"{name}: {told}; at most {MAX_PIXELS:,} are read; make it smaller") from None
        except Exception as error:  # broken headers raise whatever the format's reader stumbles over
            raise InputError(
                f"{name}: damaged, or no image of a kind that is read ({', '.join(formats())});"
                f" convert or fetch it again ({type(error).__name__})"
            ) from None
        with image:
            check_size(image, name)
            yield image


@cache
def formats() -> tuple[str, ...]:
    """Those of the formats that this build of Pillow reads; in order, so that an unlikely one is never tried first."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def check_size(image: Image.Image, name: str) -> None:
    """Raise InputError where an image has no pixels or too many."""
    width, height = image.size
    if width * height == 0:
        raise InputError(f"{name}: is {width} x {height} pixels; it needs at least one")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name}: is {width} x {height} pixels; at most {MAX_PIXELS:,} in all are read; make it smaller"
        )


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """The first frame in RGB, turned as its EXIF orientation says."""
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            low, high = np.asarray(image).min(), np.asarray(image).max()
            if not 0 <= low <= high <= np.iinfo(np.uint8).max:
                raise InputError(
                    f"{name}: has 32-bit values from {low} to {high}, whose white is unknown; save it with 8 or 16 bits"
                )
        if not image.has_transparency_data:
            return image.convert("RGB")
        seen = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    except InputError:
        raise
    except Exception as error:  # as above; a decoder's complaints have no common class
        raise InputError(f"{name}: damaged or cut short ({error}); make or fetch it again") from None


def check_pixels(array: np.ndarray, name: str) -> np.ndarray:
    """An array as 8-bit pixels of one or three channels or four, or InputError."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or array.size == 0:
        raise InputError(
            f"{name}: has shape {array.shape}; it must be (height, width) or (height, width, channels),"
            " with 1, 3 or 4 channels"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise InputError(f"{name}: has shape {array.shape}; at most {MAX_PIXELS:,} pixels are read; make it smaller")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.floating) or not ((array >= 0) & (array <= 1)).all():  # nor NaN
        extent = f"{array.min()} to {array.max()}" if np.issubdtype(array.dtype, np.number) else "no numbers"
        raise InputError(
            f"{name}: has values of {array.dtype} ({extent}); they must be uint8, uint16, or fractions in [0, 1]"
        )
    return (array * 255).round().astype(np.uint8)


@contextmanager
def opened_sound(source: Path | str | bytes, name: str) -> Iterator[soundfile.SoundFile]:
    """A sound file of which the header alone is read, closed afterwards; what fails inside is the file's fault.

    Raises:
        InputError: There is none, or of a kind that is not read.
    """
    with opened(source, name) as file:
        try:
            with soundfile.SoundFile(file) as sound:
                yield sound
        except soundfile.LibsndfileError as error:
            raise InputError(
                f"{name}: damaged, or no sound of a kind that is read (WAV, FLAC, OGG, MP3); convert or fetch it"
                f" again ({error.error_string})"
            ) from None


def check_complete(sound: soundfile.SoundFile, name: str) -> None:
    """Raise InputError where a WAV file says that it held more than it does."""
    found = re.search(r"data : (\d+) \(should be (\d+)\)", sound.extra_info)
    # A program that writes into a pipe cannot know the size, and says the largest one.
    if found and int(found[2]) < int(found[1]) < UNKNOWN_BYTES:
        raise InputError(
            f"{name}: cut short; {found[2]} of {found[1]} bytes of sound are there; make or fetch it again"
        )


def check_samples(array: np.ndarray, name: str) -> Shaped[np.ndarray, "samples channels"]:
    """An array as samples by channels, or InputError."""
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS):
        raise InputError(
            f"{name}: has shape {array.shape}; it must be (samples,) or (samples, channels), with at most"
            f" {MAX_CHANNELS} channels; turn it with .T if the channels come first"
        )
    if array.dtype not in PCM_SCALE and not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{name}: has samples of {array.dtype}; they must be int16, int32, or fractions of full scale (float)"
        )
    if array.ndim == 2 and 0 < array.shape[0] < array.shape[1]:
        raise InputError(
            f"{name}: has shape {array.shape}, more channels than samples; turn it with .T if the channels come first"
        )
    return array if array.ndim == 2 else array[:, None]


def full_scale(samples: Shaped[np.ndarray, "samples channels"]) -> Float[np.ndarray, "samples channels"]:
    """Samples as fractions of full scale."""
    if (scale := PCM_SCALE.get(samples.dtype)) is not None:
        return samples.astype(np.float32) / np.float32(scale)
    return samples.astype(np.float32)
