# SPDX-License-Identifier: Apache-2.0
"""Named sets of modules to adapt, resolved to full paths of the modules a model really has.

Never by leaf name: the AltUp projections are called "0", "1" and "2", and so are layers; towers have leaves
of the decoder's names. AltUp itself is in no set: its coefficients are used outside their modules, where an
adapter would not be seen. Nor are convolutions in any that treat each channel by itself: a low rank saves
nothing of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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


# Linear maps whose weight is used in a layer that is never called, so that an adapter would not be seen.
UNCALLED = ("altup.prediction_coefs", "altup.correction_coefs")
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


def resolve_targets(
    model: nn.Module, sets: Iterable[TargetSet], *, matching: Sequence[str] = (), excluded: Sequence[str] = ()
) -> list[str]:
    """Full paths of the modules of ``model`` that are in any of ``sets``, in the model's order.

    Readers have no key and value projections, and none are listed for them. The modules of a set that the model
    has are enough: embedders of one medium, where it has a tower for one.

    Args:
        sets: Named sets.
        matching: Expressions for full paths of further modules.
        excluded: Expressions for full paths of modules to leave out after all.

    Raises:
        ConfigError: Nothing is asked for, some of it matches nothing, or nothing is left.
    """
    found = matches(model, sets, matching)
    chosen = {name for names in found.values() for name in names}
    for expression in excluded:
        taken = {name for name in chosen if re.fullmatch(expression, name)}
        if not taken:
            raise ConfigError(
                f"adapter.exclude_matching: '{expression}' matches none of the {len(chosen)} chosen modules, such as"
                f" '{min(chosen)}'; it must match a full path, so begin it with '.*', or leave it out"
            )
        chosen -= taken
        if not chosen:
            raise ConfigError(f"adapter.exclude_matching: '{expression}' takes the last module; nothing is adapted")
    return [name for name in adaptable(model) if name in chosen]


def matches(model: nn.Module, sets: Iterable[TargetSet], matching: Sequence[str] = ()) -> dict[str, list[str]]:
    """The modules of each set and of each expression, in the model's order; raises as ``resolve_targets``."""
    wanted = {str(target_set): pattern_of(target_set) for target_set in sets}
    wanted |= {expression: re.compile(expression) for expression in matching}
    if not wanted:
        raise ConfigError(f"adapter: no targets; choose some of {', '.join(TargetSet)}, or give targets_matching")
    names = adaptable(model)
    found = {what: [name for name in names if pattern.fullmatch(name)] for what, pattern in wanted.items()}
    for what in (what for what, matched in found.items() if not matched):
        if what not in matching:
            raise ConfigError(
                f"adapter: target set '{what}' matches no module of this {type(model).__name__};"
                " give a Gemma3n without an adapter, and for targets beside the text decoder one with its towers"
            )
        raise ConfigError(
            f"adapter.targets_matching: '{what}' matches none of the {len(names)} modules that can be adapted, such as"
            f" '{names[0] if names else 'none'}'; it must match a full path, so begin it with '.*'"
        )
    return found


def adaptable(model: nn.Module) -> list[str]:
    """Full paths of the modules whose weight a low rank can change: linear maps, and convolutions over all channels.

    Tables are not among them: a change of the token table's reading would be none of the head, which is the same.
    """
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
        and not name.endswith(UNCALLED)
    ]


def check_patterns(paths: Iterable[str], patterns: Mapping[str, Mapping[str, int]]) -> None:
    """Raise ConfigError for an expression of a rank or alpha pattern that is for none of the adapted modules.

    Args:
        paths: Of the adapted modules.
        patterns: By the key of the config that they are under.
    """
    paths = list(paths)
    for key, pattern in patterns.items():
        for expression in pattern:
            if not any(re.match(rf"(.*\.)?({expression})$", path) for path in paths):
                raise ConfigError(
                    f"adapter.{key}: '{expression}' matches none of the {len(paths)} adapted modules, such as"
                    f" '{paths[0]}'; give the end of a path, from a dot on, or leave it out"
                )


def pattern_of(target_set: TargetSet) -> re.Pattern[str]:
    """What the full paths of a set look like."""
    if target_set in BESIDE_DECODER:
        return re.compile(rf"model\.{BESIDE_DECODER[target_set]}")
    inside = "|".join(map(re.escape, IN_LAYERS[target_set]))
    alternatives = [rf"layers\.\d+\.(?:{inside})", *map(re.escape, OUTSIDE_LAYERS.get(target_set, ()))]
    return re.compile(re.escape(DECODER) + rf"(?:{'|'.join(alternatives)})")
