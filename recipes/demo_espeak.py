# SPDX-License-Identifier: Apache-2.0
"""Synthetic voices: the speech synthesiser eSpeak NG, as it lies in an installed package, in many voices and accents.

Of the package (GPL-3) only the shared library and its data are used, by their path; its Python is never imported.
"""

from __future__ import annotations

import ctypes

import numpy as np
from jaxtyping import Float

from model.errors import InputError
from recipes.demo_packages import package_directory

PACKAGE = "espeakng_loader"
LIBRARIES = ("libespeak-ng.so", "libespeak-ng.dylib", "espeak-ng.dll")
ACCENTS = {
    "en": ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland"),
    "fr": ("fr", "fr-be", "fr-ch"),
    "it": ("it",),
}
NO_PEOPLE = ("obo", "whisper", "Demonic", "croak")  # parts of the names of voices that are like nobody's
PCM_SCALE = 2**15  # of 16 bits

# Of espeak-ng/speak_lib.h.
OUTPUT_SYNCHRONOUS, DO_NOT_EXIT, UTF_8, FROM_CHARACTER = 2, 0x8000, 1, 1
RATE, PITCH = 1, 3  # words per minute; 0 to 99
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesizer:
    """Says a text in a voice. The library has one state for the whole process: use one at a time.

    Raises:
        InputError: The package is not installed, or has no library for this machine.
    """

    def __init__(self) -> None:
        directory = package_directory(PACKAGE, carries="synthetic voices")
        library = next((directory / name for name in LIBRARIES if (directory / name).is_file()), None)
        if library is None:
            raise InputError(f"demo: '{directory}' holds no speech synthesiser; expected one of {', '.join(LIBRARIES)}")
        self.variants = sorted(
            path.name
            for path in (directory / "espeak-ng-data/voices/!v").iterdir()
            if not any(part in path.name for part in NO_PEOPLE)
        )
        self.pieces: list[np.ndarray] = []
        self.callback = Callback(self.take)  # kept: the library calls it for as long as it lives
        self.library = ctypes.CDLL(str(library))
        self.sample_rate_hz: int = self.library.espeak_Initialize(
            OUTPUT_SYNCHRONOUS, 0, str(directory).encode(), DO_NOT_EXIT
        )
        if self.sample_rate_hz <= 0:
            raise InputError(f"demo: the speech synthesiser in '{directory}' does not start; install it anew")
        self.library.espeak_SetSynthCallback(self.callback)

    def take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        """Keep the samples that the library hands over; 0 asks for more."""
        if samples and count > 0:
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(
        self, text: str, *, accent: str, variant: str, words_per_minute: int, pitch: int
    ) -> Float[np.ndarray, " samples"]:
        """``text`` as sound of one channel, full scale 1, at ``sample_rate_hz``.

        Args:
            accent: One of ``ACCENTS``.
            variant: One of ``variants``, a person's manner of speaking.
            pitch: 0 to 99.
        """
        voice = f"{accent}+{variant}"
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"demo: the speech synthesiser has no voice '{voice}'; install it anew")
        self.library.espeak_SetParameter(RATE, words_per_minute, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        self.pieces.clear()
        encoded = text.encode()
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, FROM_CHARACTER, 0, UTF_8, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.pieces).astype(np.float32) / PCM_SCALE
