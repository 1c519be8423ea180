# SPDX-License-Identifier: Apache-2.0
"""The demo's pictures: handwritten digits from an installed package, as image files."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.demo_packages import package_directory
from recipes.demo_text import Split, chance, split_of

PACKAGE, TABLE = "sklearn", Path("datasets/data/digits.csv.gz")
SIDE = 8  # pixels, as scanned
MOST_INK = 16  # values are 0 to 16
WHITE = 255
PICTURE_SIDE = 64  # pixels, as written


@dataclass(frozen=True)
class Picture:
    """Someone wrote a digit."""

    digit: int
    path: Path
    split: Split


def write_pictures(directory: Path) -> list[Picture]:
    """A PNG of every digit: light on dark. Their order is chance, but always the same.

    (From dark on light a tower learns half as fast: most of what it sees then is the paper.)

    Raises:
        InputError: The package is not installed.
    """
    pictures = []
    for index, (*ink, digit) in enumerate(read_table()):
        number = chance(f"digit {index}")
        path = directory / f"digit_{index:04}.png"
        scanned = np.rint(WHITE / MOST_INK * np.array(ink).reshape(SIDE, SIDE)).astype(np.uint8)
        Image.fromarray(scanned).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC).save(path)
        pictures.append((number, Picture(digit, path, split_of(number))))
    return [picture for _, picture in sorted(pictures, key=lambda pair: pair[0])]


def read_table() -> list[list[int]]:
    """The installed digits: 64 values of ink, and which digit it is.

    Raises:
        InputError: The package is not installed.
    """
    path = package_directory(PACKAGE, carries="handwritten digits") / TABLE
    with gzip.open(path, "rt", encoding="ascii") as file:
        return [[int(float(value)) for value in row] for row in csv.reader(file)]
