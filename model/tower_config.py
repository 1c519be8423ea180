# SPDX-License-Identifier: Apache-2.0
"""The shapes of the towers, spelled as in the published ``config.json``, and how their media stand in a text.

A medium's soft tokens take the place of a run of placeholder ids between two delimiters. Placeholder
and closing delimiter lie in a small vocabulary of the medium's own, behind that of the text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from model.errors import ConfigError

COLOURS = 3  # of a pixel: red, green, blue


class Modality(StrEnum):
    """What a model takes in. Text is always among it."""

    text = "text"
    vision = "vision"
    audio = "audio"


@dataclass(frozen=True, kw_only=True)
class MediaTokens:
    """How one item of a medium stands in a text: ``begin_id``, a run of ``per_item`` placeholders, ``end_id``."""

    placeholder_id: int
    begin_id: int
    end_id: int
    per_item: int  # soft tokens

    @property
    def ids(self) -> tuple[int, int, int]:
        """The ids that no one is taught to say."""
        return (self.begin_id, self.placeholder_id, self.end_id)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower. Defaults are the published values; the architecture names a table of blocks.

    Raises:
        ConfigError: A field contradicts another, or asks for something Gemma 3n does not have.

    Source: transformers' ``Gemma3nVisionConfig``, and the top level of its ``Gemma3nConfig`` for ``tokens``.
    """

    TOKEN_FIELDS: ClassVar = ("image_token_id", "boi_token_id", "eoi_token_id", "vision_soft_tokens_per_image")

    architecture: str = "mobilenetv5_300m_enc"
    hidden_size: int = 2048  # channels of a soft token as the tower makes it
    vocab_size: int = 128
    vocab_offset: int = 262_144
    rms_norm_eps: float = 1e-6
    tokens: MediaTokens = MediaTokens(placeholder_id=262_145, begin_id=255_999, end_id=262_144, per_item=256)

    def __post_init__(self) -> None:
        check_tower(self, "vision_config")

    @property
    def ids(self) -> range:
        """The ids of the tower's own small vocabulary."""
        return range(self.vocab_offset, self.vocab_offset + self.vocab_size)

    @classmethod
    def parse(cls, published: Mapping[str, Any]) -> VisionConfig:
        """Read the vision part of a whole published ``config.json``."""
        part = section(published, "vision_config")
        if part.get("do_pooling"):
            raise ConfigError("vision_config: do_pooling is true; Gemma 3n's tower gives a grid of soft tokens")
        if part.get("model_args"):
            raise ConfigError(
                f"vision_config: model_args is {part['model_args']!r}; the tower is built as its architecture says,"
                " and no other way is implemented: leave model_args out"
            )
        tokens = media_tokens(cls.tokens, published, cls.TOKEN_FIELDS)
        return cls(**known_fields(cls, part, "vision_config"), tokens=tokens)

    def publish(self) -> dict[str, Any]:
        """The fields of ``vision_config`` as transformers reads them."""
        return own_fields(self) | {"model_type": "gemma3n_vision", "do_pooling": False}

    def publish_tokens(self) -> dict[str, int]:
        """What stands at the top level of ``config.json`` for this medium."""
        return published_tokens(self)


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """The audio tower. Fields are those of ``config.json``; defaults are the published values.

    Raises:
        ConfigError: A field contradicts another, or asks for something Gemma 3n does not have.

    Source: transformers' ``Gemma3nAudioConfig``, and the top level of its ``Gemma3nConfig`` for ``tokens``.
    """

    TOKEN_FIELDS: ClassVar = ("audio_token_id", "boa_token_id", "eoa_token_id", "audio_soft_tokens_per_image")

    hidden_size: int = 1536
    input_feat_size: int = 128  # mels
    vocab_size: int = 128
    vocab_offset: int = 262_272
    rms_norm_eps: float = 1e-6
    gradient_clipping: float = 1e10
    conf_attention_chunk_size: int = 12
    conf_attention_context_left: int = 13  # frames, the attending one included
    conf_attention_context_right: int = 0
    conf_attention_logit_cap: float = 50.0
    conf_num_attention_heads: int = 8
    conf_num_hidden_layers: int = 12
    conf_conv_kernel_size: int = 5
    conf_reduction_factor: int = 4
    conf_residual_weight: float = 0.5
    sscp_conv_channel_size: tuple[int, int] = (128, 32)
    sscp_conv_group_norm_eps: float = 1e-3
    sscp_conv_kernel_size: tuple[tuple[int, int], tuple[int, int]] = ((3, 3), (3, 3))  # time, frequency
    sscp_conv_stride_size: tuple[tuple[int, int], tuple[int, int]] = ((2, 2), (2, 2))
    tokens: MediaTokens = MediaTokens(placeholder_id=262_273, begin_id=256_000, end_id=262_272, per_item=188)

    def __post_init__(self) -> None:
        check_tower(self, "audio_config")
        if self.hidden_size % self.conf_num_attention_heads:
            raise ConfigError(
                f"audio_config: hidden_size {self.hidden_size} cannot be shared evenly by"
                f" {self.conf_num_attention_heads} heads (conf_num_attention_heads)"
            )

    @property
    def ids(self) -> range:
        """The ids of the tower's own small vocabulary."""
        return range(self.vocab_offset, self.vocab_offset + self.vocab_size)

    @property
    def max_frames(self) -> int:
        """The longest clip whose soft tokens fit into a run of placeholders."""
        return (
            self.tokens.per_item
            * self.conf_reduction_factor
            * math.prod(time for time, _ in self.sscp_conv_stride_size)
        )

    @property
    def padding_id(self) -> int:
        """The id whose embedding fills a run of placeholders that the clip is too short for."""
        return self.vocab_offset + self.vocab_size - 1

    @classmethod
    def parse(cls, published: Mapping[str, Any]) -> AudioConfig:
        """Read the audio part of a whole published ``config.json``."""
        part = section(published, "audio_config")
        tokens = media_tokens(cls.tokens, published, cls.TOKEN_FIELDS)
        return cls(**known_fields(cls, part, "audio_config"), tokens=tokens)

    def publish(self) -> dict[str, Any]:
        """The fields of ``audio_config`` as transformers reads them."""
        return own_fields(self) | {"model_type": "gemma3n_audio"}

    def publish_tokens(self) -> dict[str, int]:
        """What stands at the top level of ``config.json`` for this medium."""
        return published_tokens(self)


TowerConfig = VisionConfig | AudioConfig


def section(published: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside ``config.json``; all its defaults if it is not there."""
    part = published.get(name, {})
    if not isinstance(part, Mapping):
        raise ConfigError(f"{name} is {part!r}; it must be an object")
    return part


def known_fields(cls: type[TowerConfig], part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values that a file gives to our fields, each of the kind of its default."""
    values = {}
    for known in dataclasses.fields(cls):
        if known.name != "tokens" and part.get(known.name) is not None:
            values[known.name] = like(known.default, part[known.name], f"{where}: {known.name}")
    return values


def like(example: Any, value: Any, what: str) -> Any:
    """``value`` if it is of the kind of ``example`` (a whole number will do for a fraction), lists as tuples.

    Raises:
        ConfigError: It is of another kind.
    """
    if isinstance(example, tuple):
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(example):
            raise ConfigError(f"{what} is {value!r}; it must be a list of {len(example)} like {example!r}")
        return tuple(like(one, other, what) for one, other in zip(example, value, strict=True))
    kinds = (int, float) if isinstance(example, float) else (type(example),)
    if not isinstance(value, kinds) or isinstance(value, bool) is not isinstance(example, bool):
        raise ConfigError(f"{what} is {value!r}; it must be of the kind of {example!r}")
    return value


def media_tokens(default: MediaTokens, published: Mapping[str, Any], names: Sequence[str]) -> MediaTokens:
    """The top level's ids for a medium; ``names`` are theirs, in the order of the fields of ``MediaTokens``."""
    ours = (known.name for known in dataclasses.fields(MediaTokens))
    given = {
        mine: like(0, published[theirs], theirs)
        for mine, theirs in zip(ours, names, strict=True)
        if published.get(theirs) is not None
    }
    return dataclasses.replace(default, **given)


def published_tokens(config: TowerConfig) -> dict[str, int]:
    """How the medium stands in a text, under the names of the top level."""
    return dict(zip(config.TOKEN_FIELDS, dataclasses.astuple(config.tokens), strict=True))


def own_fields(config: TowerConfig) -> dict[str, Any]:
    """The published fields of a tower's config, without what stands at the top level."""
    fields = {known.name: getattr(config, known.name) for known in dataclasses.fields(config)}
    del fields["tokens"]
    return {name: as_lists(value) for name, value in fields.items()}


def as_lists(value: Any) -> Any:
    """Tuples as JSON has them."""
    return [as_lists(entry) for entry in value] if isinstance(value, tuple) else value


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a field, however deep its tuples are."""
    if isinstance(value, tuple):
        for entry in value:
            yield from numbers(entry)
    elif isinstance(value, int | float):
        yield value


def check_tower(config: TowerConfig, where: str) -> None:
    """Raise ConfigError unless placeholder and end lie in the medium's own vocabulary, and all sizes are positive."""
    for known in dataclasses.fields(config):
        value = getattr(config, known.name)
        may_be_zero = known.name == "conf_attention_context_right"
        if not all(0 < number < math.inf or (number == 0 and may_be_zero) for number in numbers(value)):  # nor NaN
            raise ConfigError(f"{where}: {known.name} is {value}; it must be positive and finite")
    outside = [token for token in (config.tokens.placeholder_id, config.tokens.end_id) if token not in config.ids]
    if outside or len(set(config.tokens.ids)) < 3 or config.tokens.per_item < 1:
        raise ConfigError(
            f"{where}: an item stands in the text as {config.tokens}; begin, placeholder and end must be three ids,"
            f" the last two of {config.ids.start} to {config.ids.stop - 1} (vocab_offset, vocab_size), and per_item"
            " at least 1"
        )
