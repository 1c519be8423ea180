# SPDX-License-Identifier: Apache-2.0
"""How large a sub-model is, from names and shapes alone: nothing is loaded.

Two conventions are in use for the same model. Published files hold keys and values of layers that
read another's; nothing computes with them, but Google's sizes count them ("E2B" is 1,905,495,648).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from model.checkpoint.names import TIED_HEAD, TOKEN_TABLE, is_tower, unused
from model.config import TextConfig
from model.slicing.cuts import LAYER, TEXT, place
from model.slicing.submodel import SubModel

# Tables that are looked up, not multiplied with: left out of the "effective" parameters.
LOOKED_UP = (TOKEN_TABLE, f"{TEXT}.embed_tokens_per_layer.weight")


class Layout(StrEnum):
    """Which tensors of the text decoder are counted."""

    used = "used"  # those something computes with: what our model owns, and transformers 5.6 and later
    published = "published"  # those in Google's files: also the keys and values of readers


def text_shapes(config: TextConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the text decoder's tensors."""
    dim, ple, layers = config.hidden_size, config.hidden_size_per_layer_input, config.num_hidden_layers
    shapes: dict[str, tuple[int, ...]] = {
        TOKEN_TABLE: (config.vocab_size, dim),
        f"{TEXT}.embed_tokens_per_layer.weight": (config.vocab_size_per_layer_input, layers * ple),
        f"{TEXT}.per_layer_model_projection.weight": (layers * ple, dim),
        f"{TEXT}.per_layer_projection_norm.weight": (ple,),
        f"{TEXT}.norm.weight": (dim,),
    }
    for stream in range(config.altup_num_inputs - 1):
        shapes[f"{TEXT}.altup_projections.{stream}.weight"] = (dim, dim)
        shapes[f"{TEXT}.altup_unembed_projections.{stream}.weight"] = (dim, dim)
    for layer in range(layers):
        prefix = LAYER.format(layer=layer)
        shapes |= {f"{prefix}.{name}": shape for name, shape in layer_shapes(config, layer).items()}
    unread = unused(config)
    if layout is Layout.published:
        return shapes | unread
    return {name: shape for name, shape in shapes.items() if name not in unread}


def layer_shapes(config: TextConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Names within one layer, and shapes, keys and values included."""
    dim, streams, rank = config.hidden_size, config.altup_num_inputs, config.laurel_rank
    width, ple = config.intermediate_size[layer], config.hidden_size_per_layer_input
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return {
        "self_attn.q_proj.weight": (queries, dim),
        "self_attn.k_proj.weight": (keys, dim),
        "self_attn.v_proj.weight": (keys, dim),
        "self_attn.o_proj.weight": (dim, queries),
        "self_attn.q_norm.weight": (config.head_dim,),
        "self_attn.k_norm.weight": (config.head_dim,),
        "mlp.gate_proj.weight": (width, dim),
        "mlp.up_proj.weight": (width, dim),
        "mlp.down_proj.weight": (dim, width),
        "altup.correct_output_scale": (dim,),
        "altup.correction_coefs.weight": (streams, streams),
        "altup.prediction_coefs.weight": (streams**2, streams),
        "altup.modality_router.weight": (streams, dim),
        "altup.router_norm.weight": (dim,),
        "laurel.linear_left.weight": (rank, dim),
        "laurel.linear_right.weight": (dim, rank),
        "laurel.post_laurel_norm.weight": (dim,),
        "input_layernorm.weight": (dim,),
        "post_attention_layernorm.weight": (dim,),
        "pre_feedforward_layernorm.weight": (dim,),
        "post_feedforward_layernorm.weight": (dim,),
        "per_layer_input_gate.weight": (ple, dim),
        "per_layer_projection.weight": (dim, ple),
        "post_per_layer_input_norm.weight": (dim,),
    }


def count_parameters(shapes: Iterable[tuple[str, Sequence[int]]], sub: SubModel, config: TextConfig) -> int:
    """Parameters of the part ``sub`` of a model whose tensors have these names and shapes.

    Towers count if they are given, a stored copy of the tied head does not.

    Raises:
        SliceError: A name is in no row of the table of cuts.
    """
    return sum(size for _, size in placed_sizes(shapes, sub, config))


def count_effective_parameters(shapes: Iterable[tuple[str, Sequence[int]]], sub: SubModel, config: TextConfig) -> int:
    """Parameters of the sub-model's text decoder without its two token tables: the "E" in E2B.

    Google's published figures are those of ``Layout.published``.

    Raises:
        SliceError: A name is in no row of the table of cuts.
    """
    return sum(size for name, size in placed_sizes(shapes, sub, config) if name not in LOOKED_UP and not is_tower(name))


def placed_sizes(
    shapes: Iterable[tuple[str, Sequence[int]]], sub: SubModel, config: TextConfig
) -> Iterator[tuple[str, int]]:
    """Name and size, in the sub-model, of each tensor that it has."""
    for name, shape in shapes:
        placement = place(name, sub, config)
        if placement is not None and name != TIED_HEAD:
            yield placement.name, math.prod(placement.shape(shape))
