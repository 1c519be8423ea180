# SPDX-License-Identifier: Apache-2.0
"""Which sub-models a user means: a row of a table is put in, and each is held against the model it is a part of."""

from __future__ import annotations

from collections.abc import Mapping

from model.config import TextConfig
from model.errors import ConfigError
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.table import written_in
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
            " slice.ffn_widths=[…]; see matslice slice --help"
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
