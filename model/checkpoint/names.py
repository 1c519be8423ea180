# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in files: the published variants of one name, and names that nothing computes with.

Our own names are the published multimodal ones (``model.language_model.layers.0…``). A text-only model
saved by transformers may lack ``language_model.``.
"""

from __future__ import annotations

from model.config import ModelConfig, TextConfig
from model.slicing.cuts import TEXT, WHOLE_PREFIXES
from model.tower_config import Modality

TIED_HEAD = "lm_head.weight"  # the head is the token table; a file may hold it a second time
TOKEN_TABLE = f"{TEXT}.embed_tokens.weight"
PER_LAYER_TABLE = f"{TEXT}.embed_tokens_per_layer.weight"
TEXT_ROOTS = frozenset(
    {
        "embed_tokens", "embed_tokens_per_layer", "layers", "norm", "altup_projections",
        "altup_unembed_projections", "per_layer_model_projection", "per_layer_projection_norm",
    }
)  # fmt: skip


def ours(name: str) -> str:
    """The name we give to the tensor that a file calls ``name``; unknown names are given back as they are."""
    root, _, rest = name.partition(".")
    if root == "model" and rest.partition(".")[0] in TEXT_ROOTS:
        return f"{TEXT}.{rest}"
    return name


def like(file_name: str, name: str) -> str:
    """Our ``name``, spelled in the variant that ``file_name`` uses."""
    return name if ours(file_name) == file_name else text_only(name)


def text_only(name: str) -> str:
    """Our ``name`` as transformers' text-only model calls it."""
    return f"model.{name.removeprefix(f'{TEXT}.')}" if name.startswith(f"{TEXT}.") else name


def in_file(name: str, config: ModelConfig) -> str:
    """Our ``name``, as a checkpoint of this config spells it: transformers' text-only model has names of its own."""
    return name if config.is_multimodal else text_only(name)


def is_tower(name: str) -> bool:
    """Whether this is a tensor of the vision or audio tower, or of their embedders."""
    return name.startswith(WHOLE_PREFIXES)


def modality_of(name: str) -> Modality:
    """Whose tensor (or module) this is: that of a medium's tower and its embedder, or the text decoder's."""
    for modality in (Modality.vision, Modality.audio):
        if name.startswith((f"model.{modality}_tower.", f"model.embed_{modality}.")):
            return modality
    return Modality.text


def unused(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what published files hold but no computation reads: keys and values of readers.

    Readers attend to their producer's keys and values, always. Google's files carry their own
    projections all the same; files written by transformers 5.6 and later do not.
    """
    rows = config.num_key_value_heads * config.head_dim
    shapes = {
        "k_proj": (rows, config.hidden_size),
        "v_proj": (rows, config.hidden_size),
        "k_norm": (config.head_dim,),
    }
    return {
        f"{TEXT}.layers.{layer}.self_attn.{module}.weight": shape
        for layer in range(config.first_shared_layer, config.num_hidden_layers)
        for module, shape in shapes.items()
    }
