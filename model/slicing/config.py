# SPDX-License-Identifier: Apache-2.0
"""The config carrier: per-layer fields are gathered by kept layer, counts are counted again, ids renumbered."""

from __future__ import annotations

import dataclasses
from typing import Any

from model.config import ModelConfig, TextConfig
from model.slicing.cuts import PER_LAYER_FIELDS
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import slice_vocabulary


def slice_config(config: ModelConfig, sub: SubModel) -> ModelConfig:
    """The config of the part ``sub`` of a model of this config; what the file says besides stays.

    Raises:
        ConfigError: The parent has no tower for one of the modalities.
        SliceError: The sub-model does not fit the config.
    """
    sub.check(config)
    if sub.modalities is not None:
        config = config.only(sub.modalities)
    if sub.audio_layers is not None and config.audio is not None:
        audio = dataclasses.replace(config.audio, conf_num_hidden_layers=len(sub.audio_layers))
        config = dataclasses.replace(config, audio=audio)
    if sub.vocabulary is not None:
        config = slice_vocabulary(config, sub.vocabulary)
    return dataclasses.replace(config, text=slice_text_config(config.text, sub.spec))


def slice_text_config(config: TextConfig, spec: SliceSpec) -> TextConfig:
    """The text config of the sub-model ``spec``.

    Layer types are gathered, not derived from the new position: a layer keeps its window and its
    rotary base wherever it ends up.

    Raises:
        SliceError: The spec does not fit the config.
    """
    spec.check(config)
    gathered: dict[str, Any] = {
        field: tuple(getattr(config, field)[layer] for layer in spec.kept_layers) for field in PER_LAYER_FIELDS
    }
    return dataclasses.replace(
        config,
        **gathered,
        intermediate_size=spec.ffn_widths,
        num_kv_shared_layers=sum(layer >= config.first_shared_layer for layer in spec.kept_layers),
    )
