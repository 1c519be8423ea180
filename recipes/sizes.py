# SPDX-License-Identifier: Apache-2.0
"""Which sub-models a user means: a row of a table is put in, and each is held against the model it is a part of.

What stays around the decoder, towers and layers of theirs, is said alike to all that cut or count a sub-model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model.config import ModelConfig, TextConfig
from model.errors import ConfigError
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import written_in
from model.tower_config import Modality
from recipes.schema import choices

CUSTOM = "custom"  # the file of conf/slice that leaves everything to be said beside it


def find_slice(written: SliceConfig) -> SliceConfig:
    """The slice that ``slice=`` and what is said beside it mean; no model is needed to say so.

    Raises:
        ConfigError: Nothing is asked for.
        SliceError: A row is asked for that there is not, or layers or widths beside a row.
    """
    found = written_in(written)
    if found.name == CUSTOM and not found.skip_layers and not found.ffn_widths:
        files = "|".join(name for name in choices("slice") if name != CUSTOM)
        raise ConfigError(
            f"slice: must be given: slice={files}, or slice.row=NAME of Google's table, or slice.skip_layers=[…]"
            " slice.ffn_widths=[…]; slice=full keeps all layers; see matslice slice --help"
        )
    return found


def resolve_slice(written: SliceConfig, config: TextConfig) -> SliceSpec:
    """The sub-model of ``config`` that is meant; errors as of ``find_slice``, and where it does not fit the model."""
    return SliceSpec.resolve(find_slice(written), config)


def resolve_sizes(sizes: Mapping[str, SliceConfig], config: TextConfig) -> list[SliceSpec]:
    """The sub-models of a named set, in its order.

    Raises:
        ConfigError: The set is empty, or a slice is listed under another name than its own.
        SliceError: A slice does not fit the model.
    """
    if not sizes:
        raise ConfigError("sizes is empty; name at least one sub-model, as in sizes=full")
    for key, written in sizes.items():
        if written.name != key:
            raise ConfigError(f"sizes.{key} is named '{written.name}'; key and name must be the same")
    return [SliceSpec.resolve(written_in(written), config) for written in sizes.values()]


def with_towers(
    spec: SliceSpec, config: ModelConfig, *, modalities: Sequence[Modality] | None, skip_audio_layers: Sequence[int]
) -> SubModel:
    """The part ``spec`` of a decoder with what is to stay around it; of the vocabulary, all.

    Args:
        spec: The part of the decoder.
        config: The parent's.
        modalities: Towers to keep; None: all there are.
        skip_audio_layers: Layers of the audio tower to leave out, by index in the parent.

    Raises:
        ConfigError: There is no such tower, or no such layer in it.
    """
    wanted = config if modalities is None else config.only(modalities)
    audio_layers = None
    if skip_audio_layers:
        if wanted.audio is None:
            raise ConfigError(
                "skip_audio_layers: the sub-model has no audio tower; leave skip_audio_layers out, or keep audio"
                " among the modalities"
            )
        audio_layers = layers_without(skip_audio_layers, wanted.audio.conf_num_hidden_layers)
    return SubModel(spec, wanted.modalities, audio_layers)


def layers_without(skipped: Sequence[int], layers: int) -> tuple[int, ...]:
    """The layers of the audio tower that stay.

    Raises:
        ConfigError: Others are skipped than there are, one twice, or all.
    """
    kept = tuple(layer for layer in range(layers) if layer not in skipped)
    if not set(skipped) <= set(range(layers)) or len(skipped) != layers - len(kept) or not kept:
        raise ConfigError(
            f"skip_audio_layers is {list(skipped)}; the audio tower has layers 0 to {layers - 1}, of which each can be"
            " skipped once, but one must stay"
        )
    return kept
