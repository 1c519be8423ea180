# SPDX-License-Identifier: Apache-2.0
"""Sound files and arrays of samples as they come, to fractions of full scale."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float, Shaped

from model.errors import InputError
from model.processor.mp3 import count_frames
from model.processor.source import opened

MAX_CHANNELS = 32  # more columns than this are samples lying the wrong way round
MAX_PEAK = 64.0  # of full scale, far louder than any sound mixed too hot; whole numbers go into the thousands
PCM_SCALE = {np.dtype(np.int16): 2**15, np.dtype(np.int32): 2**31}  # full scale, as sound files have it
UNKNOWN_BYTES = 2**31 - 2**16  # from here on, a size in a WAV header means "until the end"
UNKNOWN_SAMPLES = 2**62  # libsndfile's word for a FLAC that was written into a pipe is about twice this
BLOCK_SAMPLES = 2**18  # read at once of what is not wanted


@contextmanager
def opened_sound(source: Path | str | bytes, name: str) -> Iterator[soundfile.SoundFile]:
    """A sound file of which nothing is decoded yet, closed afterwards; what fails inside is the file's fault.

    Raises:
        InputError: There is none, or of a kind that is not read, or it is not as long as it says.
    """
    with opened(source, name) as file:
        try:
            with soundfile.SoundFile(file) as sound:
                check_length(sound, file, name)
                yield sound
        except soundfile.LibsndfileError as error:
            raise InputError(
                f"{name}: damaged, or no sound of a kind that is read (WAV, FLAC, OGG, MP3); convert or fetch it"
                f" again ({error.error_string})"
            ) from None


def check_length(sound: soundfile.SoundFile, file: io.BytesIO | io.BufferedReader, name: str) -> None:
    """Raise InputError where a file is shorter than it says, or longer than it can be read.

    Nothing is read beyond the length that is found here, and an MP3 or a FLAC need not say its length.
    """
    if sound.frames >= UNKNOWN_SAMPLES:
        raise InputError(f"{name}: does not say how long it is; write it again, or convert it to WAV")
    if sound.format == "MP3":
        place = file.tell()
        file.seek(0)
        frames = count_frames(file.read())
        file.seek(place)
        if frames is not None and not frames.agree_with(sound.frames):
            raise InputError(
                f"{name}: holds {frames.samples / sound.samplerate:.2f} s of sound, but seems to last"
                f" {sound.frames / sound.samplerate:.2f} s; it is cut short, joined from several, or an MP3 that does"
                " not say its length; convert it to WAV or FLAC, or fetch it again"
            )
    found = re.search(r"data : (\d+) \(should be (\d+)\)", sound.extra_info)
    # A program that writes into a pipe cannot know the size, and says the largest one.
    if found and int(found[2]) < int(found[1]) < UNKNOWN_BYTES:
        raise InputError(
            f"{name}: cut short; {found[2]} of {found[1]} bytes of sound are there; make or fetch it again"
        )


def read_part(
    sound: soundfile.SoundFile, start: int, num_samples: int, name: str
) -> Float[np.ndarray, "samples channels"]:
    """The samples of a file from ``start`` on.

    Raises:
        InputError: Fewer are there than the file says.
    """
    if sound.format == "MP3":  # finds a place only roughly, so that it is read from its beginning
        for skipped in range(0, start, BLOCK_SAMPLES):
            sound.read(min(BLOCK_SAMPLES, start - skipped), dtype="float32")
    else:
        sound.seek(start)
    samples = sound.read(num_samples, dtype="float32", always_2d=True)
    if len(samples) < num_samples and sound.format != "MP3":  # which only estimates its length
        raise InputError(
            f"{name}: damaged or cut short; the file promises {num_samples} samples and holds {len(samples)};"
            " make or fetch it again"
        )
    return samples


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
    if array.size and np.issubdtype(array.dtype, np.floating):
        peak = max(float(array.max()), -float(array.min()))
        if MAX_PEAK < peak < np.inf:  # what is not finite is told by its place, when it is decoded
            raise InputError(
                f"{name}: has samples up to {peak:g}; fractions of full scale lie within -1 and 1, so divide them by"
                " full scale (32768 for 16 bits), or give whole numbers (int16, int32)"
            )
    return array if array.ndim == 2 else array[:, None]


def full_scale(samples: Shaped[np.ndarray, "samples channels"]) -> Float[np.ndarray, "samples channels"]:
    """Samples as fractions of full scale."""
    if (scale := PCM_SCALE.get(samples.dtype)) is not None:
        return samples.astype(np.float32) / np.float32(scale)
    return samples.astype(np.float32)
