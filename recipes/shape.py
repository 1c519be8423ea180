# SPDX-License-Identifier: Apache-2.0
"""The shape of a model as written in ``conf/model/*.yaml``: the fields of a published ``config.json``.

A tower's section holds what the file says in that section, and the ids that it says at its top level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from model.config import LayerType, ModelConfig, TextConfig
from model.errors import ConfigError
from model.tower_config import AudioConfig, TowerConfig, VisionConfig


@dataclass(kw_only=True, slots=True)
class VisionShape:
    """A vision tower, and how a picture stands in the text. Defaults are the published values."""

    architecture: str = "mobilenetv5_300m_enc"  # a table of blocks
    hidden_size: int = 2048  # channels of a soft token
    vocab_size: int = 128
    vocab_offset: int = 262_144
    rms_norm_eps: float = 1e-6
    image_token_id: int = 262_145  # the placeholder
    boi_token_id: int = 255_999  # before the run of placeholders
    eoi_token_id: int = 262_144  # behind it
    vision_soft_tokens_per_image: int = 256

    def to_tower_config(self) -> VisionConfig:
        """The checked, frozen form; raises ConfigError if fields contradict one another."""
        values = dataclasses.asdict(self)
        return VisionConfig.parse({"vision_config": values, **values})


@dataclass(kw_only=True, slots=True)
class AudioShape:
    """An audio tower, and how a recording stands in the text. Defaults are the published values."""

    hidden_size: int = 1536
    input_feat_size: int = 128  # mels
    vocab_size: int = 128
    vocab_offset: int = 262_272
    rms_norm_eps: float = 1e-6
    gradient_clipping: float = 1e10
    conf_attention_chunk_size: int = 12  # frames
    conf_attention_context_left: int = 13  # frames, the attending one included
    conf_attention_context_right: int = 0  # frames
    conf_attention_logit_cap: float = 50.0
    conf_num_attention_heads: int = 8
    conf_num_hidden_layers: int = 12
    conf_conv_kernel_size: int = 5
    conf_reduction_factor: int = 4
    conf_residual_weight: float = 0.5
    sscp_conv_channel_size: list[int] = field(default_factory=lambda: [128, 32])
    sscp_conv_group_norm_eps: float = 1e-3
    sscp_conv_kernel_size: list[list[int]] = field(default_factory=lambda: [[3, 3], [3, 3]])  # time, frequency
    sscp_conv_stride_size: list[list[int]] = field(default_factory=lambda: [[2, 2], [2, 2]])
    audio_token_id: int = 262_273  # the placeholder
    boa_token_id: int = 256_000  # before the run of placeholders
    eoa_token_id: int = 262_272  # behind it
    audio_soft_tokens_per_image: int = 188  # of a recording; the name is the published one

    def to_tower_config(self) -> AudioConfig:
        """The checked, frozen form; raises ConfigError if fields contradict one another."""
        values = dataclasses.asdict(self)
        return AudioConfig.parse({"audio_config": values, **values})


@dataclass(kw_only=True, slots=True)
class ShapeConfig:
    """A model to build from nothing, or to hold a checkpoint against: the text decoder's fields, and the towers.

    Per-layer fields have one entry per layer; ``intermediate_size`` may have one entry for all.
    """

    num_hidden_layers: int
    intermediate_size: list[int]  # neurons of each layer's feed-forward network
    activation_sparsity_pattern: list[float]  # share of neurons silenced in each layer
    num_kv_shared_layers: int  # the last layers that read an earlier layer's keys and values
    layer_types: list[LayerType] = field(default_factory=list)  # empty: every fifth layer is global, as published
    hidden_size: int = 2048
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 256
    sliding_window: int = 512  # tokens
    max_position_embeddings: int = 32_768  # tokens
    vocab_size: int = 262_400
    vocab_size_per_layer_input: int = 262_144
    hidden_size_per_layer_input: int = 256
    laurel_rank: int = 64
    initializer_range: float = 0.02  # standard deviation of weights that are drawn, not loaded
    vision: VisionShape | None = None  # null: no vision tower
    audio: AudioShape | None = None  # null: no audio tower

    def to_model_config(self) -> ModelConfig:
        """The checked, frozen form.

        Raises:
            ConfigError: Fields contradict one another.
        """
        published = dataclasses.asdict(self)
        published["layer_types"] = [kind.value for kind in self.layer_types]
        if len(self.intermediate_size) == 1:
            published["intermediate_size"] = self.intermediate_size[0]
        try:
            return ModelConfig(
                text=TextConfig.parse(published),
                vision=None if self.vision is None else self.vision.to_tower_config(),
                audio=None if self.audio is None else self.audio.to_tower_config(),
            )
        except ConfigError as error:
            raise ConfigError(f"model: {error}") from None

    def check(self, found: ModelConfig, where: str) -> None:
        """Raise ConfigError unless the model in ``where`` has this shape; a tower may have been left out of it."""
        wanted = self.to_model_config()
        named = [
            known.name
            for known in dataclasses.fields(self)
            if known.name not in ("vision", "audio", "initializer_range")  # it says nothing of weights that are there
        ]
        different = [
            *differences(found.text, wanted.text, named),
            *tower_differences("vision", found.vision, wanted.vision),
            *tower_differences("audio", found.audio, wanted.audio),
        ]
        if different:
            raise ConfigError(
                f"model: the checkpoint in '{where}' has another shape than model= says: {'; '.join(different)};"
                " leave model= out to take the checkpoint as it is"
            )


def differences(found: Any, wanted: Any, names: list[str]) -> Iterator[str]:
    """The fields in which two configs differ."""
    for name in names:
        if (here := getattr(found, name)) != (there := getattr(wanted, name)):
            yield f"{name} is {here}, not {there}"


def tower_differences(medium: str, found: TowerConfig | None, wanted: TowerConfig | None) -> Iterator[str]:
    """How a tower differs from the wanted one; a checkpoint of which it is not loaded says nothing of it."""
    if found is None:
        return
    if wanted is None:
        yield f"it has a tower for {medium}, of which model= says nothing"
        return
    # As written: the ids that stand at the top level of config.json have names of their own there.
    ours, theirs = (tower.publish() | tower.publish_tokens() for tower in (wanted, found))
    for name, value in theirs.items():
        if value != ours.get(name):
            yield f"{medium}.{name} is {value}, not {ours.get(name)}"
