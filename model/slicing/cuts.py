# SPDX-License-Identifier: Apache-2.0
"""The table of cuts: for every tensor of the published checkpoint, what a sub-model has less of it.

The table is total. A tensor that nobody thought of is an error, never a silent copy. ``place`` is its
only reader, and answers with a value that serves a live tensor, one still on disk, a LoRA factor or
just a shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from model.config import TextConfig
from model.errors import SliceError
from model.slicing.spec import SliceSpec


class Dim(Enum):
    """A dimension of the parent that a sub-model has less of."""

    FFN = "ffn"  # one layer's feed-forward neurons; a prefix is kept
    LAYERS = "layers"  # one block of hidden_size_per_layer_input entries per decoder layer


@dataclass(frozen=True)
class Cut:
    """One row of the table: tensors of this name lose part of ``dim`` along ``axis``."""

    pattern: str
    axis: int
    dim: Dim


TEXT = "model.language_model"
LAYER = f"{TEXT}.layers.{{layer}}"

CUTS = (
    Cut(f"{LAYER}.mlp.gate_proj.weight", axis=0, dim=Dim.FFN),
    Cut(f"{LAYER}.mlp.up_proj.weight", axis=0, dim=Dim.FFN),
    Cut(f"{LAYER}.mlp.down_proj.weight", axis=1, dim=Dim.FFN),
    Cut(f"{TEXT}.embed_tokens_per_layer.weight", axis=1, dim=Dim.LAYERS),
    Cut(f"{TEXT}.per_layer_model_projection.weight", axis=0, dim=Dim.LAYERS),
)

# Kept whole. A layer's tensors are renumbered, and dropped with their layer.
WHOLE = (
    f"{LAYER}.self_attn.q_proj.weight",
    f"{LAYER}.self_attn.k_proj.weight",
    f"{LAYER}.self_attn.v_proj.weight",
    f"{LAYER}.self_attn.o_proj.weight",
    f"{LAYER}.self_attn.q_norm.weight",
    f"{LAYER}.self_attn.k_norm.weight",
    f"{LAYER}.altup.correct_output_scale",
    f"{LAYER}.altup.correction_coefs.weight",
    f"{LAYER}.altup.prediction_coefs.weight",
    f"{LAYER}.altup.modality_router.weight",
    f"{LAYER}.altup.router_norm.weight",
    f"{LAYER}.laurel.linear_left.weight",
    f"{LAYER}.laurel.linear_right.weight",
    f"{LAYER}.laurel.post_laurel_norm.weight",
    f"{LAYER}.input_layernorm.weight",
    f"{LAYER}.post_attention_layernorm.weight",
    f"{LAYER}.pre_feedforward_layernorm.weight",
    f"{LAYER}.post_feedforward_layernorm.weight",
    f"{LAYER}.per_layer_input_gate.weight",
    f"{LAYER}.per_layer_projection.weight",
    f"{LAYER}.post_per_layer_input_norm.weight",
    f"{TEXT}.embed_tokens.weight",
    f"{TEXT}.per_layer_projection_norm.weight",
    f"{TEXT}.altup_projections.{{stream}}.weight",
    f"{TEXT}.altup_unembed_projections.{{stream}}.weight",
    f"{TEXT}.norm.weight",
    "lm_head.weight",
)

# Kept whole, whatever they hold: no cut reaches into the towers.
WHOLE_PREFIXES = ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")

# Fields of the config with one entry per layer; the widths come from the spec.
PER_LAYER_FIELDS = ("layer_types", "activation_sparsity_pattern")

NUMBERED = re.compile(
    re.escape(TEXT) + r"\.(?P<kind>layers|altup_projections|altup_unembed_projections)\.(?P<number>0|[1-9]\d*)\."
)
CUT_OF = {cut.pattern: cut for cut in CUTS}


@runtime_checkable
class Sliceable(Protocol):
    """What a part is taken from: a Tensor, or a safetensors slice that is still on disk."""

    def __getitem__(self, index: Any, /) -> Tensor:
        """The part at this index."""
        ...


@dataclass(frozen=True)
class Placement:
    """Where one parent tensor goes in the sub-model, and which part of it: ``ranges`` of one axis, or all."""

    name: str
    axis: int | None = None  # None: the whole tensor
    ranges: tuple[range, ...] = ()  # ascending, not touching each other

    def take(self, source: Sliceable) -> Tensor:
        """The part of ``source`` that goes into the sub-model; may share memory with a live tensor."""
        if self.axis is None:
            return source[...]
        before = (slice(None),) * self.axis
        parts = [source[(*before, slice(kept.start, kept.stop))] for kept in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.axis)

    def shape(self, parent: Sequence[int]) -> tuple[int, ...]:
        """The shape of the part that goes into the sub-model, of a tensor of shape ``parent``."""
        if self.axis is None:
            return tuple(parent)
        return (*parent[: self.axis], sum(map(len, self.ranges)), *parent[self.axis + 1 :])


def place(name: str, spec: SliceSpec, config: TextConfig) -> Placement | None:
    """Place one parent tensor in the sub-model; None if its layer is skipped.

    Args:
        name: The tensor's published name (``model.language_model.…``, a tower's, or ``lm_head.weight``).
        spec: The sub-model, checked against ``config``.
        config: The parent's text config.

    Raises:
        SliceError: No row of the table names this tensor, or it is of a layer the parent does not have.
    """
    row, number = row_of(name)
    if "{layer}" not in row:
        return cut_to(name, CUT_OF.get(row), 0, spec, config)
    assert number is not None
    if number >= config.num_hidden_layers:
        raise SliceError(f"tensor '{name}': the parent has layers 0 to {config.num_hidden_layers - 1}")
    if number not in spec.kept_layers:
        return None
    position = spec.kept_layers.index(number)
    return cut_to(row.replace("{layer}", str(position)), CUT_OF.get(row), position, spec, config)


def row_of(name: str) -> tuple[str, int | None]:
    """The row of the table that names this tensor, and the number that stands at the row's placeholder.

    Raises:
        SliceError: There is none.
    """
    for prefix in WHOLE_PREFIXES:
        if name.startswith(prefix):
            return prefix, None
    row, number = name, None
    if match := NUMBERED.match(name):
        placeholder = "{layer}" if match["kind"] == "layers" else "{stream}"
        row, number = f"{name[: match.start('number')]}{placeholder}.{name[match.end() :]}", int(match["number"])
    is_template = "{" in name  # a row itself, not a tensor's name
    if is_template or (row not in CUT_OF and row not in WHOLE):
        raise SliceError(f"tensor '{name}' is in no row of model/slicing/cuts.py; add it to CUTS or WHOLE")
    return row, number


def cut_to(name: str, cut: Cut | None, position: int, spec: SliceSpec, config: TextConfig) -> Placement:
    """The placement that one row asks for; ``position`` is the layer's place in the sub-model."""
    if cut is None:
        return Placement(name)
    if cut.dim is Dim.FFN:
        return Placement(name, cut.axis, (range(spec.ffn_widths[position]),))
    block = config.hidden_size_per_layer_input
    return Placement(name, cut.axis, blocks(spec.kept_layers, block))


def blocks(kept: Sequence[int], size: int) -> tuple[range, ...]:
    """The entries of the kept layers' blocks, as few ranges as possible (each is one read from disk)."""
    ranges: list[range] = []
    for layer in kept:
        start = layer * size
        if ranges and ranges[-1].stop == start:
            start = ranges.pop().start
        ranges.append(range(start, (layer + 1) * size))
    return tuple(ranges)
