# SPDX-License-Identifier: Apache-2.0
"""Requests for slices, plans and checks that cannot be met: how each is written, and what its user must be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.recipes.broken import CONFIG_FILE, WEIGHTS_FILE
from tests.recipes.broken_slices import GATE, INDEX, SHARD, SlicePlaces

Words = Callable[[SlicePlaces], list[str]]
Requests = dict[str, tuple[Words, str]]
READ_BY_5 = "layer 2 is skipped, but layer 5 (full_attention) reads its keys and values; keep 2, or skip every"


def sliced(*more: str | Callable[[SlicePlaces], str]) -> Words:
    """``matslice slice`` that would work, but for ``more``."""
    return lambda at: [
        "slice", f"checkpoint={at.weights}", "slice=full", f"output={at.output}",
        *(word if isinstance(word, str) else word(at) for word in more),
    ]  # fmt: skip


def from_(broken: Callable[[SlicePlaces], Path], *more: str) -> Words:
    """``matslice slice`` of a checkpoint that is not as it should be."""
    return sliced(lambda at: f"checkpoint={broken(at)}", *more)


def media(*more: str | Callable[[SlicePlaces], str]) -> Words:
    """``matslice slice`` of a checkpoint with both towers."""
    return sliced(lambda at: f"checkpoint={at.media}", *more)


def worded(*more: str | Callable[[SlicePlaces], str]) -> Words:
    """``matslice slice`` of a checkpoint whose vocabulary can be trimmed."""
    return sliced(lambda at: f"checkpoint={at.worded}", *more)


def with_adapter(broken: Callable[[SlicePlaces], Path], *more: str | Callable[[SlicePlaces], str]) -> Words:
    """``matslice slice`` with an adapter that is not as it should be."""
    return sliced(lambda at: f"adapter_path={broken(at)}", *more)


def planned(*more: str | Callable[[SlicePlaces], str]) -> Words:
    """``matslice plan`` that would write a file, but for ``more``."""
    return lambda at: [
        "plan", f"checkpoint={at.weights}", "slice=full", f"save={at.output}",
        *(word if isinstance(word, str) else word(at) for word in more),
    ]  # fmt: skip


def verified(broken: Callable[[SlicePlaces], Path | str], *more: str | Callable[[SlicePlaces], str]) -> Words:
    """``matslice verify`` of a checkpoint that is not as it should be."""
    return lambda at: [
        "verify", f"checkpoint={broken(at)}", *(word if isinstance(word, str) else word(at) for word in more),
    ]  # fmt: skip


# Of 9 layers, 1 and 2 make what the last 6 read.
LAYERS: Requests = {
    "a local producer": (
        sliced("slice.skip_layers=[1]"), "layer 1 is skipped, but layer 3 (sliding_attention) reads its keys",
    ),
    "a global producer": (sliced("slice.skip_layers=[2]"), READ_BY_5),
    "a producer of which one reader stays": (
        sliced("slice.skip_layers=[2,5]"), "layer 2 is skipped, but layer 8 (full_attention) reads its keys and values",
    ),
    "layers out of order": (sliced("slice.skip_layers=[4,3]"), "in ascending order: write skip_layers=[3,4]"),
    "a layer twice": (sliced("slice.skip_layers=[3,3,4]"), "[3] more than once; name each layer once"),
    "a layer from the end": (sliced("slice.skip_layers=[-1]"), "skip_layers has [-1], but layers are numbered from 0"),
    "a layer behind the last": (sliced("slice.skip_layers=[9]"), "skip_layers has [9], but the parent has layers 0"),
    "every layer": (sliced("slice.skip_layers=[0,1,2,3,4,5,6,7,8]"), "skip_layers leaves no layer; keep at least one"),
    "a layer that is a share": (
        sliced("slice.skip_layers=[3.5]"), "skip_layers[0] is '3.5'; it must be a whole number",
    ),
    "a layer in words": (sliced("slice.skip_layers=[three]"), "skip_layers[0] is 'three'; it must be a whole number"),
    "no neuron": (
        sliced("slice.ffn_widths=[0]"), "layer 0 asks for width 0; its parent has 1 to 48; to leave the layer",
    ),
    "fewer than none": (sliced("slice.ffn_widths=[-24]"), "layer 0 asks for width -24; its parent has 1 to 48"),
    "wider than the parent": (sliced("slice.ffn_widths=[49]"), "layer 0 asks for width 49; its parent has 1 to 48"),
    "one layer wider than the parent": (
        sliced("slice.ffn_widths=[48,48,48,48,48,48,48,48,64]"), "layer 8 asks for width 64; its parent has 1 to 48",
    ),
    "too few widths": (sliced("slice.ffn_widths=[24,24]"), "2 ffn_widths for 9 kept layers; give one per kept layer"),
    "widths of skipped layers": (
        sliced("slice.skip_layers=[3,4,5]", "slice.ffn_widths=[24,24,24,24,24,24,24,24,24]"),
        "9 ffn_widths for 6 kept layers; give one per kept layer, or a single width for all (leave out those of",
    ),
    "a width that is a share": (
        sliced("slice.ffn_widths=[24.5]"), "ffn_widths[0] is '24.5'; it must be a whole number",
    ),
    "a width in words": (sliced("slice.ffn_widths=[half]"), "ffn_widths[0] is 'half'; it must be a whole number"),
    "a slice of another parent": (
        sliced("slice=e2b"), "slice 'e2b': skip_layers has [20, 21, 22, 23, 24], but the parent has layers 0 to 8",
    ),
    "a row of another parent": (
        sliced("slice=custom", "slice.row=Main model"), "slice 'main': 35 ffn_widths for 9 kept layers; give one per",
    ),
    "indices of the parent's parent": (
        from_(SlicePlaces.short, "slice.skip_layers=[6,7,8]"),
        "skip_layers has [6, 7, 8], but the parent has layers 0 to 5",
    ),
    "widths of the parent's parent": (
        from_(SlicePlaces.short, "slice.ffn_widths=[48]"), "layer 0 asks for width 48; its parent has 1 to 24",
    ),
    "nothing asked for": (sliced("slice=custom"), "slice: must be given: slice=e1_96b_layer|"),
    "code in a table": (
        sliced("slice=custom", lambda at: f"slice.csv={at.table('[exit()]', 1)}", "slice.row=mine"),
        "mine.csv, row 2, column 'FFN Hidden Dims', entry 1: 'exit()' is found, and is not computed; allowed are whole",
    ),
    "a row that is not in the table": (
        sliced("slice=custom", lambda at: f"slice.csv={at.table()}", "slice.row=yours"),
        "has no row 'yours'; it has 'mine'",
    ),
    "a table and no row": (
        sliced("slice=custom", lambda at: f"slice.csv={at.table()}"),
        "csv is given, but no row of it; choose slice.row= one of 'mine'",
    ),
    "a table of another parent": (
        sliced("slice=custom", lambda at: f"slice.csv={at.table()}", "slice.row=mine"),
        "slice 'mine': 2 ffn_widths for 9 kept layers; give one per kept layer",
    ),
    "no table": (sliced("slice=custom", "slice.csv=no.csv", "slice.row=mine"), "no.csv: the table of slices cannot be"),
}  # fmt: skip

PARENTS: Requests = {
    "no directory": (sliced("checkpoint=nowhere"), "checkpoint: no directory 'nowhere'"),
    "a file": (from_(lambda at: at.weights / WEIGHTS_FILE), "checkpoint: no directory"),
    "an adapter": (from_(lambda at: at.adapter), "is an adapter, not a model; give its base model here"),
    "an empty directory": (
        from_(lambda at: at.empty("none")), "no config.json there; give the directory of a checkpoint",
    ),
    "no weights": (from_(lambda at: at.without(WEIGHTS_FILE)), f"no {WEIGHTS_FILE} or {INDEX} there"),
    "two sets of weights": (
        from_(lambda at: at.with_file(INDEX, "{}")),
        f"holds both {WEIGHTS_FILE} and {INDEX}; remove the one that is stale",
    ),
    "a missing shard": (from_(lambda at: at.shard(None)), f"{INDEX} names {SHARD}, which is not there; copy it too"),
    "an empty shard": (from_(lambda at: at.shard(lambda _: b"")), f"{SHARD}: cut short or not a safetensors file"),
    "a shard cut short in its header": (
        from_(lambda at: at.shard(lambda content: content[:99])),
        f"{SHARD}: cut short or not a safetensors file (a header",
    ),
    "a shard cut short in its data": (
        from_(lambda at: at.shard(lambda content: content[:-1])),
        f"{SHARD}: cut short or not a safetensors file (its tensors",
    ),
    "a shard with something behind": (
        from_(lambda at: at.shard(lambda content: content + b"\0")), f"{SHARD}: cut short or not a safetensors file",
    ),
    "a page for a shard": (
        from_(lambda at: at.shard(lambda _: b"<!DOCTYPE html>" * 9)), f"{SHARD}: cut short or not a safetensors file",
    ),
    "an index that is none": (from_(lambda at: at.with_file(INDEX, "[]", at.sharded)), "not an index (JSON with a"),
    "an index of a tensor that is not there": (
        from_(lambda at: at.index(lambda homes: homes.update({"model.new": SHARD}))),
        f"{SHARD}: lacks model.new, unlike",
    ),
    "an index without a tensor": (
        from_(lambda at: at.index(lambda homes: homes.pop(GATE))), f"also has {GATE}, unlike {INDEX} says",
    ),
    "an index that says another shard": (
        from_(lambda at: at.index(lambda homes: homes.update({GATE: min({*homes.values()} - {homes[GATE]})}))),
        f"lacks {GATE}, unlike",
    ),
    "a missing tensor": (
        from_(lambda at: at.tensors(lambda t: t.pop(GATE))), "1 missing ('model.language_model.layers.3.mlp",
    ),
    "an unknown tensor": (
        from_(lambda at: at.tensors(lambda t: t.update({"model.new": t[GATE].clone()}))), "1 extra ('model.new')",
    ),
    "a misshapen tensor": (
        from_(lambda at: at.tensors(lambda t: t.update({GATE: t[GATE][:-1].clone()}))),
        "shape (47, 32) instead of (48, 32)",
    ),
    "a tensor of another dtype": (
        from_(lambda at: at.tensors(lambda t: t.update({GATE: t[GATE].bfloat16()}))),
        "most tensors are F32, but 1 are BF16",
    ),
    "packed 4-bit weights": (
        from_(lambda at: at.packed()),
        "stored as U8 (model.language_model.layers.3.mlp.gate_proj.weight); weights are BF16",
    ),
    "packed weights of the usual names": (
        from_(lambda at: at.packed(halved=True)), "packed and quantised checkpoints cannot be cut",
    ),
    "quantised weights": (
        from_(lambda at: at.tensors(lambda t: t.update({k: v.char() for k, v in t.items()}))),
        "tensors are stored as I8",
    ),
    "a dtype nobody knows": (
        from_(lambda at: at.header(lambda told: told[GATE].update(dtype="F4"))), "dtype F4, which is unknown here",
    ),
    "tensors over each other": (
        from_(lambda at: at.header(lambda told: told[GATE].update(data_offsets=[0, 48 * 32 * 4]))),
        "not behind its neighbour",
    ),
    "a shape that is not the bytes'": (
        from_(lambda at: at.header(lambda told: told[GATE].update(shape=[48, 33]))),
        f"'{GATE}' has 6144 bytes where its",
    ),
    "a config that is no JSON": (from_(lambda at: at.with_file(CONFIG_FILE, "{")), "config.json:1: not JSON"),
    "a config of nothing": (from_(lambda at: at.with_file(CONFIG_FILE, "")), "config.json:1: not JSON"),
    "a config that is a list": (
        from_(lambda at: at.with_file(CONFIG_FILE, "[]")), "config.json: cannot be read (no JSON object)",
    ),
    "a config in another encoding": (from_(lambda at: at.with_file(CONFIG_FILE, b"\xff\xfe{")), "not UTF-8 text"),
    "a config of another model": (
        from_(lambda at: at.config(model_type="gemma3")), "model_type is 'gemma3'; matslice reads",
    ),
    "a config of fewer layers": (
        from_(lambda at: at.config(num_hidden_layers=8)),
        "intermediate_size has 9 entries for 8 layers (num_hidden_layers)",
    ),
    "a config of other widths": (
        from_(lambda at: at.config(intermediate_size=64)), "27 misshapen ('model.language_model.layers.0.mlp",
    ),
    "a config of a width too few": (from_(lambda at: at.config(intermediate_size=[48] * 8)), "intermediate_size has 8"),
    "a config of no neurons": (from_(lambda at: at.config(intermediate_size=0)), "every layer at least one neuron"),
    "a config of words": (
        from_(lambda at: at.config(hidden_size="wide")), "hidden_size is 'wide'; it must be of the kind of 2048",
    ),
    "a config of negative sizes": (from_(lambda at: at.config(head_dim=-8)), "head_dim is -8; it must be positive"),
    "a config that shares too much": (
        from_(lambda at: at.config(num_kv_shared_layers=9)),
        "num_kv_shared_layers is 9 of 9 layers; allowed are 0 to 8",
    ),
    "a config of another activation": (
        from_(lambda at: at.config(hidden_activation="relu")), "hidden_activation is 'relu'",
    ),
    "a config whose decoder is a list": (
        from_(lambda at: at.with_file(CONFIG_FILE, '{"model_type": "gemma3n", "text_config": []}')),
        "tensors do not fit config.json",
    ),
    "a config of another decoder beside towers": (
        from_(lambda at: at.text_config(hidden_size=48)),
        "misshapen ('model.embed_audio.embedding_projection.weight' has",
    ),
    "a parent whose lineage is damaged": (
        from_(lambda at: at.with_file("slice.json", "{")), "slice.json: cannot be read (Expecting property name",
    ),
}  # fmt: skip
