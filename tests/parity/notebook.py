# SPDX-License-Identifier: Apache-2.0
"""What the public slicing notebook of June 2025 does to a checkpoint, in our own words: the thing to compare with.

    python -m tests.parity.notebook PARENT TARGET --skip '[20, 21, 22, 23, 24]' --widths '[8192]' --mended

Every tensor is read whole and cut in memory: leading rows or columns of the feed-forward networks, and the
kept layers' blocks of the per-layer tables through an index. Files of about 4 GB are filled one after the other.

It has mistakes, which stay unless ``Mistakes`` says otherwise: ``MENDED`` writes the same bytes of tensors, but
a checkpoint that loads, so that its time and memory can be measured for something that works. Neither mends
that a tensor may fill a file beyond its size, that two tensors of a skipped producer are refused by their number
in E4B, or that widths are not checked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 4_000_000_000
LAYER = re.compile(r"((?<=^model\.language_model\.layers\.)|(?<=^model\.layers\.))\d+(?=\.)")
SPARSITY = 0.95
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
OTHER_FILES = ("generation_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Which of the notebook's mistakes are made; the defaults are as published."""

    integer_zeros: bool = True  # dense layers' sparsity is 0, not 0.0, which transformers 5 takes for no number
    types_of_all_layers: bool = True  # layer_types keeps the entries of skipped layers
    numbers_of_e4b: bool = True  # sparse and reading layers are counted by E4B's numbers, whatever the parent
    tokenizer_only: bool = True  # nothing says how answers end, or how media are prepared
    files_in_any_order: bool = True  # as the directory lists them
    size_of_files: bool = True  # the index gives the files' size as the tensors'


MENDED = Mistakes(
    integer_zeros=False, types_of_all_layers=False, numbers_of_e4b=False, tokenizer_only=False,
    files_in_any_order=False, size_of_files=False,
)  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """Which layers of how many stay, and where E4B's kinds of layers begin and end."""

    skipped: tuple[int, ...]
    total: int
    sparse: int  # the first so many are sparse
    unshared: int  # the first so many make keys and values

    @property
    def kept(self) -> list[int]:
        """The layers that stay, by their number in the parent."""
        return [layer for layer in range(self.total) if layer not in self.skipped]


def notebook_slice(
    source: Path,
    target: Path,
    skip_layers: Sequence[int],
    ffn_widths: Sequence[int],
    *,
    mistakes: Mistakes = Mistakes(),
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a part of a checkpoint, as the notebook would.

    Args:
        source: A checkpoint with the published names, or those of a text-only model.
        target: A directory; what is there of the same name is overwritten.
        skip_layers: Layers that are left out.
        ffn_widths: Widths of the others, one for each or one for all.
        mistakes: What it does wrong.
        max_shard_bytes: A file is written as soon as it holds this much or more.

    Raises:
        ValueError: Skipped are E4B's last layers that make keys and values, or there are not as many widths as
            layers.
    """
    published = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = published.get("text_config", published)
    layers = layers_of(text, tuple(skip_layers), mistakes)
    widths = list(ffn_widths) * (len(layers.kept) if len(ffn_widths) == 1 else 1)
    if len(widths) != len(layers.kept):
        raise ValueError(f"{len(widths)} widths for {len(layers.kept)} layers")
    target.mkdir(parents=True, exist_ok=True)
    change_config(text, layers, widths, mistakes)
    (target / "config.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES if mistakes.tokenizer_only else TOKENIZER_FILES + OTHER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    write_tensors(source, target, layers, widths, mistakes, max_shard_bytes)


def layers_of(text: dict[str, Any], skipped: tuple[int, ...], mistakes: Mistakes) -> Layers:
    """The layers of a parent with this text config, or ValueError if a producer that readers need is skipped."""
    total = text["num_hidden_layers"]
    if mistakes.numbers_of_e4b:
        layers = Layers(skipped, total, sparse=10, unshared=20)
    else:
        sparse = sum(share > 0 for share in text["activation_sparsity_pattern"])
        layers = Layers(skipped, total, sparse, unshared=total - text["num_kv_shared_layers"])
    reserved = {layers.unshared - 2, layers.unshared - 1}
    if reserved & set(skipped):
        raise ValueError(f"layers {sorted(reserved)} cannot be skipped")
    return layers


def change_config(text: dict[str, Any], layers: Layers, widths: list[int], mistakes: Mistakes) -> None:
    """Make the text part of a config that of the kept layers, in place."""
    sparse = sum(layer < layers.sparse for layer in layers.kept)
    dense = 0 if mistakes.integer_zeros else 0.0
    text["num_hidden_layers"] = len(layers.kept)
    text["intermediate_size"] = widths
    text["num_kv_shared_layers"] = sum(layer >= layers.unshared for layer in layers.kept)
    text["activation_sparsity_pattern"] = [SPARSITY] * sparse + [dense] * (len(layers.kept) - sparse)
    if not mistakes.types_of_all_layers:
        text["layer_types"] = [text["layer_types"][layer] for layer in layers.kept]


def write_tensors(
    source: Path, target: Path, layers: Layers, widths: list[int], mistakes: Mistakes, max_shard_bytes: int
) -> None:
    """Read, cut, gather and write all tensors; then name the files by their number, and write the index."""
    files = [name for name in os.listdir(source) if name.endswith(".safetensors")]
    homes: list[list[str]] = []  # names of the tensors of each file
    total_bytes = 0
    gathered: dict[str, Tensor] = {}
    for file in files if mistakes.files_in_any_order else sorted(files):
        with safe_open(source / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                new_name = renamed(name, layers)
                if new_name is None:
                    continue
                gathered[new_name] = cut(name, opened.get_tensor(name), layers, widths)
                if sum(tensor.nbytes for tensor in gathered.values()) >= max_shard_bytes:
                    total_bytes += write_file(target, gathered, homes, mistakes)
                    gathered = {}
    if gathered:
        total_bytes += write_file(target, gathered, homes, mistakes)
    weight_map = {}
    for number, names in enumerate(homes, start=1):
        file = f"model-{number:05}-of-{len(homes):05}.safetensors"
        numbered(target, number).rename(target / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def renamed(name: str, layers: Layers) -> str | None:
    """The tensor's name among the kept layers; None if its layer is skipped."""
    found = LAYER.search(name)
    if found is None:
        return name
    layer = int(found[0])
    return None if layer in layers.skipped else LAYER.sub(str(layers.kept.index(layer)), name)


def cut(name: str, tensor: Tensor, layers: Layers, widths: list[int]) -> Tensor:
    """What stays of a tensor that was read whole."""
    if found := LAYER.search(name):
        width = widths[layers.kept.index(int(found[0]))]
        if name.endswith(("mlp.gate_proj.weight", "mlp.up_proj.weight")):
            return tensor[:width].contiguous()
        if name.endswith("mlp.down_proj.weight"):
            return tensor[:, :width].contiguous()
    if name.endswith("embed_tokens_per_layer.weight"):
        blocks = tensor.reshape(tensor.shape[0], layers.total, -1)
        return blocks[:, layers.kept].reshape(tensor.shape[0], -1).contiguous()
    if name.endswith("per_layer_model_projection.weight"):
        blocks = tensor.reshape(layers.total, -1, tensor.shape[1])
        return blocks[layers.kept].reshape(-1, tensor.shape[1]).contiguous()
    return tensor


def write_file(target: Path, tensors: dict[str, Tensor], homes: list[list[str]], mistakes: Mistakes) -> int:
    """Write one file and note what is in it; its size in bytes, or that of its tensors."""
    homes.append(list(tensors))
    path = numbered(target, len(homes))
    save_file(tensors, path, metadata={"format": "pt"})
    return path.stat().st_size if mistakes.size_of_files else sum(tensor.nbytes for tensor in tensors.values())


def numbered(target: Path, number: int) -> Path:
    """A file's name while it is not known how many there will be."""
    return target / f"model-{number:05}.safetensors"


def main() -> None:
    """Slice as the arguments say."""
    parser = argparse.ArgumentParser(description="Slice a Gemma 3n checkpoint as the public notebook does.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--skip", type=json.loads, default=[], help="layers to leave out, such as '[20, 21]'")
    parser.add_argument("--widths", type=json.loads, required=True, help="one per kept layer, or one: '[8192]'")
    parser.add_argument("--mended", action="store_true", help="make none of its mistakes")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES, help="size of a file")
    given = parser.parse_args()
    notebook_slice(
        given.source, given.target, given.skip, given.widths, mistakes=MENDED if given.mended else Mistakes(),
        max_shard_bytes=given.shard_bytes,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
