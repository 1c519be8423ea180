# SPDX-License-Identifier: Apache-2.0
"""Named sets of modules to adapt, resolved to full paths of the modules a model really has.

Never by leaf name: the AltUp projections are called "0", "1" and "2", and so are layers; towers have leaves
of the decoder's names. AltUp itself is in no set: its coefficients are used outside their modules, where an
adapter would not be seen. Nor are convolutions in any that treat each channel by itself: a low rank saves
nothing of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from torch import nn

from model.adapter.naming import DECODER
from model.errors import ConfigError


class TargetSet(StrEnum):
    """A set of modules to adapt."""

    attention = "attention"  # queries, keys, values, output
    ffn = "ffn"  # gate, up, down
    all_linear = "all_linear"  # the seven projections of attention and feed-forward
    text = "text"  # the same by the name of its modality
    per_layer = "per_layer"  # what the per-layer embeddings pass through
    vision = "vision"  # the vision tower's attention, and every convolution that mixes channels of one place
    audio = "audio"  # the audio tower's attention and feed-forward, and what stands around its convolutions
    embedders = "embedders"  # what brings the towers' media into the text's dimension


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
IN_LAYERS = {
    TargetSet.attention: ATTENTION,
    TargetSet.ffn: FFN,
    TargetSet.all_linear: ATTENTION + FFN,
    TargetSet.text: ATTENTION + FFN,
    TargetSet.per_layer: ("per_layer_input_gate", "per_layer_projection"),
}
OUTSIDE_LAYERS = {TargetSet.per_layer: ("per_layer_model_projection",)}
BESIDE_DECODER = {
    TargetSet.vision: (
        r"vision_tower\.timm_model\.(?:blocks\.\d+\.\d+|msfa\.ffn)"
        r"\.(?:conv_pwl|pw_exp\.conv|pw_proj\.conv|attn\.(?:query|key|value|output)\.proj)"
    ),
    # Not what projects distances: the same few vectors for every clip.
    TargetSet.audio: (
        r"audio_tower\.conformer\.\d+\.(?:attention\.attn\.[qkv]_proj|attention\.post"
        r"|ffw_layer_(?:start|end)\.ffw_layer_[12]|lconv1d\.linear_(?:start|end))"
    ),
    TargetSet.embedders: r"embed_(?:vision|audio)\.embedding_projection",
}


def resolve_targets(model: nn.Module, sets: Iterable[TargetSet]) -> list[str]:
    """Full paths of the modules of ``model`` that are in any of ``sets``, in the model's order.

    Readers have no key and value projections, and none are listed for them. The modules of a set that the model
    has are enough: embedders of one medium, where it has a tower for one.

    Raises:
        ConfigError: No set is given, or one of them matches nothing.
    """
    sets = list(sets)
    if not sets:
        raise ConfigError(f"adapter: no targets; choose some of {', '.join(TargetSet)}")
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    chosen: set[str] = set()
    for target_set in sets:
        pattern = pattern_of(target_set)
        matched = [name for name in linears if pattern.fullmatch(name)]
        if not matched:
            raise ConfigError(
                f"adapter: target set '{target_set}' matches no module of this {type(model).__name__};"
                " give a Gemma3n without an adapter, and for targets beside the text decoder one with its towers"
            )
        chosen.update(matched)
    return [name for name in linears if name in chosen]


def pattern_of(target_set: TargetSet) -> re.Pattern[str]:
    """What the full paths of a set look like."""
    if target_set in BESIDE_DECODER:
        return re.compile(rf"model\.{BESIDE_DECODER[target_set]}")
    inside = "|".join(map(re.escape, IN_LAYERS[target_set]))
    alternatives = [rf"layers\.\d+\.(?:{inside})", *map(re.escape, OUTSIDE_LAYERS.get(target_set, ()))]
    return re.compile(re.escape(DECODER) + rf"(?:{'|'.join(alternatives)})")
