# SPDX-License-Identifier: Apache-2.0
"""Image files and arrays of pixels as they come, to upright pictures in red, green and blue."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from model.errors import InputError
from model.processor.source import opened

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
MAX_PIXELS = 100_000_000  # 300 MB once decoded; a bomb of a few kilobytes can claim any size
END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
END_BYTES = 65_536  # cameras write a little behind the mark

# What Pillow warns of is refused here, or of no consequence for pixels. Said once for the whole process: files
# are decoded in several threads, and a filter that is set for a while would be set in all of them.
warnings.filterwarnings("ignore", module=r"PIL\b")


@contextmanager
def opened_image(source: Path | str | bytes, name: str) -> Iterator[Image.Image]:
    """An image of which the header alone is read, closed afterwards.

    Raises:
        InputError: There is none, or it is too large.
    """
    with opened(source, name) as file:
        try:
            image = Image.open(file, formats=formats())
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
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


def check_file(source: Path | str | bytes, name: str) -> None:
    """Look at an image file's header, and whether its end is there; see ``Picture.check``."""
    with opened_image(source, name) as image:
        if not has_end(image):
            upright_rgb(image, name)


def has_end(image: Image.Image) -> bool:
    """Whether an open file closes as its kind should; True for kinds that do not mark their end.

    One that does not may hold all its pixels nevertheless; whether it does, only decoding shows.
    """
    mark, file = END_MARKS.get(image.format or ""), getattr(image, "fp", None)
    if mark is None or file is None:
        return True
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_BYTES))
    found = mark in file.read()
    file.seek(place)
    return found


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
    # A grey PPM of more than 8 bits is spread over 16 by Pillow, whatever its own white is.
    sixteen_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if sixteen_bits:
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
