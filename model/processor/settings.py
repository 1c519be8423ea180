# SPDX-License-Identifier: Apache-2.0
"""What is done to pictures and sound before a tower sees them, by the names of the published files.

Older directories say it all in one flat ``preprocessor_config.json``; newer ones have an object for each
medium in ``processor_config.json``. The fields are called the same in both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import ConfigError
from model.tower_config import COLOURS, like

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, by which the files name them


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What is done to a picture. Defaults are as published with Gemma 3n.

    Raises:
        ConfigError: A value that no vision tower can have.
    """

    height: int = 768  # pixels; the aspect ratio is not kept
    width: int = 768
    resample: int = 2
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = False
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        check_finite(self, "image settings")
        if min(self.height, self.width) < 1:
            raise ConfigError(f"image settings: size is {self.height} x {self.width}; it must be positive")
        if self.resample not in RESAMPLING:
            allowed = ", ".join(f"{number} ({name})" for number, name in RESAMPLING.items())
            raise ConfigError(f"image settings: resample is {self.resample}; allowed are {allowed}")
        if not len(self.image_mean) == len(self.image_std) == COLOURS or min(self.image_std) <= 0:
            raise ConfigError(
                f"image settings: image_mean is {self.image_mean} and image_std {self.image_std};"
                f" each needs {COLOURS} numbers, those of image_std positive"
            )

    @classmethod
    def parse(cls, published: Mapping[str, Any]) -> ImageSettings:
        """Read the settings for images; what is not said is as published with Gemma 3n.

        Raises:
            ConfigError: A value is malformed, or asks for a step that Gemma 3n does not have.
        """
        check_kind(published, "image_processor_type", "Siglip", "image settings")
        size = published.get("size") or {"height": cls.height, "width": cls.width}
        if not isinstance(size, Mapping) or not {"height", "width"} <= set(size):
            raise ConfigError(f"image settings: size is {size!r}; it must hold 'height' and 'width'")
        if published.get("do_resize") is False:
            raise ConfigError("image settings: do_resize is false; the vision tower needs images of one size")
        for name in ("do_center_crop", "do_pad", "do_pan_and_scan"):
            if published.get(name):
                raise ConfigError(f"image settings: {name} is {published[name]!r}; Gemma 3n's images are only resized")
        sides = {"height": size["height"], "width": size["width"]}
        return cls(**given_fields(cls, {**published, **sides}, "image settings"))

    def publish(self) -> dict[str, Any]:
        """The settings as transformers reads them."""
        fields = as_json(self)
        size = {"height": fields.pop("height"), "width": fields.pop("width")}
        kind = {"image_processor_type": "SiglipImageProcessor", "do_convert_rgb": True, "do_resize": True}
        return kind | {"size": size} | fields


@dataclass(frozen=True, kw_only=True)
class AudioSettings:
    """What is done to sound. Defaults are as published with Gemma 3n.

    Raises:
        ConfigError: A field contradicts another, or a value makes no sense.
    """

    feature_size: int = 128  # mels
    sampling_rate: int = 16_000  # Hz
    frame_length_ms: float = 32.0
    hop_length_ms: float = 10.0
    min_frequency: float = 125.0  # Hz
    max_frequency: float = 7600.0  # Hz
    preemphasis: float = 0.97
    preemphasis_htk_flavor: bool = True
    fft_overdrive: bool = True  # twice the frame's length, the rest zeros
    input_scale_factor: float = 1.0
    mel_floor: float = 1e-5
    per_bin_mean: tuple[float, ...] | None = None
    per_bin_stddev: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_finite(self, "audio settings")
        for name in ("feature_size", "sampling_rate", "frame_length", "hop_length", "mel_floor"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"audio settings: {name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.min_frequency < self.max_frequency <= self.sampling_rate / 2:
            raise ConfigError(
                f"audio settings: min_frequency is {self.min_frequency} and max_frequency {self.max_frequency};"
                f" they must rise within 0 to {self.sampling_rate / 2} (half of sampling_rate)"
            )
        for name in ("per_bin_mean", "per_bin_stddev"):
            values = getattr(self, name)
            if values is not None and len(values) != self.feature_size:
                raise ConfigError(f"audio settings: {name} has {len(values)} numbers for {self.feature_size} mels")

    @property
    def frame_length(self) -> int:
        """Samples of a frame that are transformed; it reads one more."""
        return round(self.sampling_rate * self.frame_length_ms / 1000)

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return round(self.sampling_rate * self.hop_length_ms / 1000)

    @property
    def fft_length(self) -> int:
        """Samples that a frame is filled up to: a power of two."""
        return 2 ** (self.frame_length - 1).bit_length() * (2 if self.fft_overdrive else 1)

    @classmethod
    def parse(cls, published: Mapping[str, Any]) -> AudioSettings:
        """Read the settings for sound; what is not said is as published with Gemma 3n.

        Raises:
            ConfigError: A value is malformed, or asks for chance (``dither``).
        """
        check_kind(published, "feature_extractor_type", "Gemma3nAudio", "audio settings")
        if published.get("padding_value"):
            raise ConfigError(
                f"audio settings: padding_value is {published['padding_value']!r}; only 0 is read, silence"
            )
        if published.get("dither"):
            raise ConfigError(
                f"audio settings: dither is {published['dither']!r}; only 0 is read, sound is not blurred"
            )
        fields = given_fields(cls, published, "audio settings")
        per_bin = (0.0,) * fields.get("feature_size", cls.feature_size)
        for name in ("per_bin_mean", "per_bin_stddev"):
            if (values := published.get(name)) is not None:
                fields[name] = like(per_bin, values, f"audio settings: {name}")
        settings = cls(**fields)
        for name in ("frame_length", "hop_length", "fft_length"):  # samples; transformers writes but never reads them
            if published.get(name) not in (None, (ours := getattr(settings, name))):
                raise ConfigError(
                    f"audio settings: {name} is {published[name]!r}, but the other values make it {ours}; take it out,"
                    " or mend frame_length_ms, hop_length_ms, sampling_rate or fft_overdrive"
                )
        return settings

    def publish(self) -> dict[str, Any]:
        """The settings as transformers reads them."""
        kind = {"feature_extractor_type": "Gemma3nAudioFeatureExtractor", "dither": 0.0, "padding_value": 0.0}
        lengths = {name: getattr(self, name) for name in ("frame_length", "hop_length", "fft_length")}
        return kind | {"padding_side": "right", "return_attention_mask": True} | lengths | as_json(self)


Settings = ImageSettings | AudioSettings


def given_fields(cls: type[Settings], published: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values that a file gives to our fields, each of the kind of its default; null says nothing."""
    fields: dict[str, Any] = {}
    for known in dataclasses.fields(cls):
        value = published.get(known.name)
        if value is None or known.default is None:
            continue
        if isinstance(known.default, bool) and not isinstance(value, bool):
            raise ConfigError(f"{where}: {known.name} is {value!r}; it must be true or false")
        fields[known.name] = (
            value if isinstance(known.default, bool) else like(known.default, value, f"{where}: {known.name}")
        )
    return fields


def check_kind(published: Mapping[str, Any], name: str, family: str, where: str) -> None:
    """Raise ConfigError where a file was made for a class that does something else."""
    kind = published.get(name)
    if kind is not None and not str(kind).startswith(family):
        raise ConfigError(
            f"{where}: {name} is {kind!r}; only those of Gemma 3n are read, whose names begin with {family}"
        )


def check_finite(settings: Settings, where: str) -> None:
    """Raise ConfigError where a value is no finite number."""
    for name, value in dataclasses.asdict(settings).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(number) for number in numbers if number is not None):
            raise ConfigError(f"{where}: {name} is {value}; it must be finite")


def as_json(settings: Settings) -> dict[str, Any]:
    """The fields, tuples as lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(settings).items()
    }
