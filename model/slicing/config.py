# SPDX-License-Identifier: Apache-2.0
"""The config carrier: per-layer fields are gathered by kept layer, counts are counted again."""

from __future__ import annotations

import dataclasses
from typing import Any

from model.config import ModelConfig, TextConfig
from model.slicing.cuts import PER_LAYER_FIELDS
from model.slicing.spec import SliceSpec


def slice_config(config: ModelConfig, spec: SliceSpec) -> ModelConfig:
    """The config of the sub-model ``spec`` of a model of this config; towers and what the file says besides stay.

    Raises:
        SliceError: The spec does not fit the config.
    """
    return dataclasses.replace(config, text=slice_text_config(config.text, spec))


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
