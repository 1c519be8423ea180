# SPDX-License-Identifier: Apache-2.0
"""What the loaders of other programs build from a ``config.json``, in our own words: shapes and who reads whom.

Each is written from the source that its rule names, with that source's constants, and knows nothing of the
rules. A program runs a slice if what it builds is what the file holds and what the slice computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shapes = dict[str, tuple[int, ...]]
LOCAL, GLOBAL = "sliding_attention", "full_attention"
ROOT = "model.language_model"


class LoadError(Exception):
    """The program stops with an error."""


@dataclass(frozen=True)
class Built:
    """Tensors by name, and for each layer its type, its sparsity, and the layer whose keys and values it reads."""

    shapes: Shapes
    types: list[str]
    sparsity: list[float]
    producers: list[int]


def transformers(whole: Mapping[str, Any]) -> Built:
    """Per-layer widths and types; a reader's producer is the last of its type; readers have no keys of their own."""
    text = whole["text_config"]
    first = text["num_hidden_layers"] - text["num_kv_shared_layers"]
    return build(text, text["intermediate_size"], last_of_type(text), keys=lambda layer: layer < first)


def mistral_rs(whole: Mapping[str, Any]) -> Built:
    """As transformers, but every layer has keys, and both towers' configs must be objects."""
    if not isinstance(whole["vision_config"], dict) or not isinstance(whole["audio_config"], dict):
        raise LoadError("invalid type: null")
    text = whole["text_config"]
    return build(text, text["intermediate_size"], last_of_type(text))


def vllm(whole: Mapping[str, Any]) -> Built:
    """A reader's producer is one or two layers before the first reader."""
    text = whole["text_config"]
    first = text["num_hidden_layers"] - text["num_kv_shared_layers"]
    producers = [
        layer if layer < first else first - (2 if kind == LOCAL else 1)
        for layer, kind in enumerate(text["layer_types"])
    ]
    return build(text, text["intermediate_size"], producers, keys=lambda layer: layer < first)


def mlx_lm(whole: Mapping[str, Any]) -> Built:
    """One cache per producer, the last of each type looked up whether or not it is read."""
    text = whole["text_config"]
    if missing := {"rope_theta", "rope_local_base_freq", "laurel_rank", "altup_coef_clip"} - set(text):
        raise LoadError(f"missing arguments: {missing}")
    both_types(text)
    return build(text, text["intermediate_size"], last_of_type(text))


def mlx_vlm(whole: Mapping[str, Any]) -> Built:
    """As mlx-lm, but every layer is as wide as the first."""
    text = whole["text_config"]
    both_types(text)
    return build(text, [text["intermediate_size"][0]] * text["num_hidden_layers"], last_of_type(text))


def llama_cpp(whole: Mapping[str, Any]) -> Built:
    """One width; twenty producers, a period of five and ten sparse layers as constants."""
    text = whole["text_config"]
    layers = text["num_hidden_layers"]
    if layers < 20:
        raise LoadError("its own tests have 22 layers at least, because of the constant")
    types = [LOCAL if layer % 5 < 4 else GLOBAL for layer in range(layers)]
    producers = [layer if layer < 20 else (18 if kind == LOCAL else 19) for layer, kind in enumerate(types)]
    sparsity = [0.95] * 10 + [0.0] * (layers - 10)
    built = build(text, [text["intermediate_size"][0]] * layers, producers)
    return Built(built.shapes, types, sparsity, producers)


def ollama(whole: Mapping[str, Any]) -> Built:
    """Its converter refuses a list of differing widths, and writes a rotary base of 0 where it finds none."""
    text = whole["text_config"]
    if len(set(text["intermediate_size"])) > 1:
        raise LoadError("differing intermediate_size")
    if not text.get("rope_theta") or not text.get("rope_local_base_freq"):
        raise LoadError("rotary base 0")
    return llama_cpp(whole)


LOADERS: dict[str, Callable[[Mapping[str, Any]], Built]] = {
    "transformers": transformers, "vLLM": vllm, "llama.cpp": llama_cpp, "Ollama": ollama, "mlx-lm": mlx_lm,
    "mlx-vlm": mlx_vlm, "mistral.rs": mistral_rs,
}  # fmt: skip


def both_types(text: Mapping[str, Any]) -> None:
    """Look up the last local and the last global layer among those that make keys and values."""
    unshared = text["layer_types"][: text["num_hidden_layers"] - text["num_kv_shared_layers"]]
    if not {LOCAL, GLOBAL} <= set(unshared):
        raise LoadError("not in list")


def last_of_type(text: Mapping[str, Any]) -> list[int]:
    """Each layer's producer: itself, or the last unshared layer of its type."""
    types, first = text["layer_types"], text["num_hidden_layers"] - text["num_kv_shared_layers"]
    last = {kind: layer for layer, kind in enumerate(types[:first])}
    return [layer if layer < first else last[kind] for layer, kind in enumerate(types)]


def build(
    text: Mapping[str, Any],
    widths: list[int],
    producers: list[int],
    *,
    keys: Callable[[int], bool] = lambda _: True,
) -> Built:
    """The text decoder that these numbers ask for; ``keys`` says which layers have keys and values of their own."""
    dim, ple, layers = text["hidden_size"], text["hidden_size_per_layer_input"], text["num_hidden_layers"]
    heads, kv_heads = (text[f"num_{kind}_heads"] * text["head_dim"] for kind in ("attention", "key_value"))
    streams, rank = text["altup_num_inputs"], text["laurel_rank"]
    shapes: Shapes = {
        "embed_tokens": (text["vocab_size"], dim),
        "embed_tokens_per_layer": (text["vocab_size_per_layer_input"], layers * ple),
        "per_layer_model_projection": (layers * ple, dim),
        "per_layer_projection_norm": (ple,),
        "norm": (dim,),
    }
    for stream in range(streams - 1):
        shapes |= {f"altup_{kind}projections.{stream}": (dim, dim) for kind in ("", "unembed_")}
    for layer, width in zip(range(layers), widths, strict=True):
        own: Shapes = {
            "self_attn.q_proj": (heads, dim), "self_attn.o_proj": (dim, heads), "self_attn.q_norm": (text["head_dim"],),
            "mlp.gate_proj": (width, dim), "mlp.up_proj": (width, dim), "mlp.down_proj": (dim, width),
            "altup.correction_coefs": (streams, streams), "altup.prediction_coefs": (streams * streams, streams),
            "altup.modality_router": (streams, dim), "altup.router_norm": (dim,), "altup.correct_output_scale": (dim,),
            "laurel.linear_left": (rank, dim), "laurel.linear_right": (dim, rank), "laurel.post_laurel_norm": (dim,),
            "per_layer_input_gate": (ple, dim), "per_layer_projection": (dim, ple),
            "post_per_layer_input_norm": (dim,), "input_layernorm": (dim,), "post_attention_layernorm": (dim,),
            "pre_feedforward_layernorm": (dim,), "post_feedforward_layernorm": (dim,),
        }  # fmt: skip
        if keys(layer):
            own |= {f"self_attn.{kind}_proj": (kv_heads, dim) for kind in "kv"}
            own["self_attn.k_norm"] = (text["head_dim"],)
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in own.items()}
    named = {
        f"{ROOT}.{name}" + ("" if name.endswith("correct_output_scale") else ".weight"): shape
        for name, shape in shapes.items()
    }
    return Built(named, text["layer_types"], text["activation_sparsity_pattern"], producers)
