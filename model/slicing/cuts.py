# SPDX-License-Identifier: Apache-2.0
"""The table of cuts: for every tensor of the published checkpoint, what a sub-model has less of it.

The table is total. A tensor that nobody thought of is an error, never a silent copy. ``place`` is its
only reader, and answers with a value that serves a live tensor, one still on disk, a LoRA factor, an
optimizer's moment or just a shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from model.config import TextConfig
from model.errors import SliceError
from model.slicing.submodel import SubModel
from model.tower_config import Modality


class Dim(Enum):
    """A dimension of the parent that a sub-model has less of."""

    FFN = "ffn"  # one layer's feed-forward neurons; a prefix is kept
    LAYERS = "layers"  # one block of hidden_size_per_layer_input entries per decoder layer
    TEXT_TOKENS = "text tokens"  # one entry for each id of the text; those of the kept vocabulary stay
    TOKENS = "tokens"  # likewise, and behind them the ids of media, which all stay


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
    Cut(f"{TEXT}.embed_tokens.weight", axis=0, dim=Dim.TOKENS),
    Cut("lm_head.weight", axis=0, dim=Dim.TOKENS),
    Cut(f"{TEXT}.embed_tokens_per_layer.weight", axis=0, dim=Dim.TEXT_TOKENS),
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
    f"{TEXT}.per_layer_projection_norm.weight",
    f"{TEXT}.altup_projections.{{stream}}.weight",
    f"{TEXT}.altup_unembed_projections.{{stream}}.weight",
    f"{TEXT}.norm.weight",
)

# Kept whole, whatever they hold, or dropped with their tower. Layers of the audio tower are renumbered.
TOWER_PREFIXES = {
    Modality.vision: ("model.vision_tower.", "model.embed_vision."),
    Modality.audio: ("model.audio_tower.", "model.embed_audio."),
}
WHOLE_PREFIXES = tuple(prefix for prefixes in TOWER_PREFIXES.values() for prefix in prefixes)
AUDIO_LAYER = re.compile(r"(?P<before>model\.audio_tower\.conformer\.)(?P<number>0|[1-9]\d*)(?P<after>\..+)")

# Fields of the config with one entry per layer; the widths come from the spec.
PER_LAYER_FIELDS = ("layer_types", "activation_sparsity_pattern")

NUMBERED = re.compile(
    re.escape(TEXT) + r"\.(?P<kind>layers|altup_projections|altup_unembed_projections)\.(?P<number>0|[1-9]\d*)\."
)
CUTS_OF = {cut.pattern: tuple(other for other in CUTS if other.pattern == cut.pattern) for cut in CUTS}


@dataclass(frozen=True)
class Kept:
    """The entries along one axis that a sub-model keeps: ranges, ascending, not touching each other."""

    axis: int
    ranges: tuple[range, ...]

    def __len__(self) -> int:
        return sum(map(len, self.ranges))


@dataclass(frozen=True)
class Placement:
    """Where one parent tensor goes in the sub-model, and which part of it: of axes not named here, all."""

    name: str
    kept: tuple[Kept, ...] = ()

    def shape(self, parent: Sequence[int]) -> tuple[int, ...]:
        """The shape of the part that goes into the sub-model, of a tensor of shape ``parent``."""
        sizes = {kept.axis: len(kept) for kept in self.kept}
        return tuple(sizes.get(axis, size) for axis, size in enumerate(parent))


def place(name: str, sub: SubModel, config: TextConfig) -> Placement | None:
    """Place one parent tensor in the sub-model; None if its layer or tower is left out.

    Args:
        name: The tensor's published name (``model.language_model.…``, a tower's, or ``lm_head.weight``).
        sub: The sub-model, checked against the parent's config.
        config: The parent's text config.

    Raises:
        SliceError: No row of the table names this tensor, or it is of a layer the parent does not have.
    """
    row, number = row_of(name)
    if row in WHOLE_PREFIXES:
        return place_tower(name, sub)
    if "{layer}" not in row:
        return Placement(name, kept_of(row, 0, sub, config))
    assert number is not None
    if number >= config.num_hidden_layers:
        raise SliceError(f"tensor '{name}': the parent has layers 0 to {config.num_hidden_layers - 1}")
    if number not in sub.spec.kept_layers:
        return None
    position = sub.spec.kept_layers.index(number)
    return Placement(row.replace("{layer}", str(position)), kept_of(row, position, sub, config))


def place_tower(name: str, sub: SubModel) -> Placement | None:
    """Place a tensor of a tower or its embedder."""
    if not any(sub.has(medium) for medium, prefixes in TOWER_PREFIXES.items() if name.startswith(prefixes)):
        return None
    layer = AUDIO_LAYER.fullmatch(name)
    if layer is None or sub.audio_layers is None:
        return Placement(name)
    if int(layer["number"]) not in sub.audio_layers:
        return None
    return Placement(f"{layer['before']}{sub.audio_layers.index(int(layer['number']))}{layer['after']}")


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
    if is_template or (row not in CUTS_OF and row not in WHOLE):
        raise SliceError(f"tensor '{name}' is in no row of model/slicing/cuts.py; add it to CUTS or WHOLE")
    return row, number


def kept_of(row: str, position: int, sub: SubModel, config: TextConfig) -> tuple[Kept, ...]:
    """What the sub-model keeps of a tensor of this row; ``position`` is its layer's place in the sub-model."""
    ranges = ((cut.axis, ranges_of(cut.dim, position, sub, config)) for cut in CUTS_OF.get(row, ()))
    return tuple(Kept(axis, kept) for axis, kept in ranges if kept is not None)


def ranges_of(dim: Dim, position: int, sub: SubModel, config: TextConfig) -> tuple[range, ...] | None:
    """The entries of one dimension that the sub-model keeps; None for all, where nothing is cut by that."""
    match dim:
        case Dim.FFN:
            return (range(sub.spec.ffn_widths[position]),)
        case Dim.LAYERS:
            return blocks(sub.spec.kept_layers, config.hidden_size_per_layer_input)
        case Dim.TEXT_TOKENS:
            return None if sub.vocabulary is None else sub.vocabulary.ranges
        case Dim.TOKENS:
            return None if sub.vocabulary is None else sub.vocabulary.rows(config.vocab_size)


def blocks(kept: Sequence[int], size: int) -> tuple[range, ...]:
    """The entries of the kept layers' blocks, as few ranges as possible (each is one read from disk)."""
    ranges: list[range] = []
    for layer in kept:
        start = layer * size
        if ranges and ranges[-1].stop == start:
            start = ranges.pop().start
        ranges.append(range(start, (layer + 1) * size))
    return tuple(ranges)
