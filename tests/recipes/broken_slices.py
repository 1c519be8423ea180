# SPDX-License-Identifier: Apache-2.0
"""What cannot be sliced, as it comes about: headers that lie, indices of other files, adapters of other kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.format import LENGTH
from model.checkpoint.reader import INDEX_FILE as INDEX
from model.slicing.adapter import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import HEADER
from model.tower_config import Modality
from tests.recipes.broken import CONFIG_FILE, WEIGHTS_FILE, Places
from tests.recipes.broken_media import STEM_BIAS
from tests.tiny import TINY_TEXT

SHARD = "model-00002-of-00003.safetensors"
UNIGRAM = json.dumps({"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}})
GATE = "model.layers.3.mlp.gate_proj.weight"  # as a text-only file spells it


@dataclass(frozen=True)
class SlicePlaces(Places):
    """``weights`` of the decoder alone; the same in three files; with towers; with a tokenizer that can be trimmed."""

    sharded: Path
    media: Path
    worded: Path

    def copy_of(self, source: Path, name: str = "broken") -> Path:
        """Any directory, to be broken."""
        return Path(shutil.copytree(source, self.room / name))

    def with_file(self, name: str, content: str | bytes, source: Path | None = None) -> Path:
        """A checkpoint of which one file says something else."""
        directory = self.copy_of(source or self.weights)
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return directory

    def header(self, change: Callable[[dict[str, Any]], object]) -> Path:
        """A checkpoint whose weight file lies about its tensors."""
        content = (self.weights / WEIGHTS_FILE).read_bytes()
        (length,) = LENGTH.unpack_from(content)
        entries = json.loads(content[LENGTH.size : LENGTH.size + length])
        change(entries)
        text = json.dumps(entries).encode()
        return self.with_file(WEIGHTS_FILE, LENGTH.pack(len(text)) + text + content[LENGTH.size + length :])

    def index(self, change: Callable[[dict[str, str]], object]) -> Path:
        """A checkpoint of several files whose index lies about where tensors are."""
        index = json.loads((self.sharded / INDEX).read_text(encoding="utf-8"))
        change(index["weight_map"])
        return self.with_file(INDEX, json.dumps(index), self.sharded)

    def shard(self, keep: Callable[[bytes], bytes] | None) -> Path:
        """A checkpoint of several files, of which one is damaged, or missing."""
        directory = self.copy_of(self.sharded)
        if keep is None:
            (directory / SHARD).unlink()
        else:
            (directory / SHARD).write_bytes(keep((directory / SHARD).read_bytes()))
        return directory

    def text_config(self, **changes: object) -> Path:
        """A multimodal checkpoint whose decoder is said to be another."""
        content = json.loads((self.media / CONFIG_FILE).read_text(encoding="utf-8"))
        content["text_config"] |= changes
        return self.with_file(CONFIG_FILE, json.dumps(content), self.media)

    def lora(self, weights: Callable[[dict[str, torch.Tensor]], object] | None = None, **config: object) -> Path:
        """An adapter with other tensors, or another config."""
        directory = self.copy_of(self.adapter, "lora")
        if weights is not None:
            tensors = load_file(directory / ADAPTER_WEIGHTS_FILE)
            weights(tensors)
            save_file(tensors, directory / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
        path = directory / ADAPTER_CONFIG_FILE
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | config), encoding="utf-8")
        return directory

    def lora_with(self, name: str, content: bytes | None) -> Path:
        """An adapter of which one file is damaged, or missing."""
        directory = self.copy_of(self.adapter, "lora")
        if content is None:
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(content)
        return directory

    def lora_renamed(self, old: str, new: str) -> Path:
        """An adapter of modules of other names."""

        def rename(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if old in name]:
                tensors[name.replace(old, new)] = tensors.pop(name)

        return self.lora(rename)

    def dora(self) -> Path:
        """An adapter with a magnitude beside each pair of factors."""

        def add(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if name.endswith(".lora_B.weight")]:
                magnitude = name.replace(".lora_B.weight", ".lora_magnitude_vector")
                tensors[magnitude] = tensors[name].norm(dim=1)

        return self.lora(add)

    def with_adapter_inside(self) -> Path:
        """A slice that was made with an adapter."""
        shutil.copytree(self.adapter, self.copy() / "adapter")
        return self.room / "broken"

    def lora_of(self, *layers: int) -> Path:
        """An adapter of some layers alone."""

        def only(tensors: dict[str, torch.Tensor]) -> None:
            for name in [*tensors]:
                if not any(f".layers.{layer}." in name for layer in layers):
                    del tensors[name]

        return self.lora(only)

    def packed(self, *, halved: bool = False) -> Path:
        """A checkpoint of which a matrix has two numbers in a byte."""

        def pack(tensors: dict[str, torch.Tensor]) -> None:
            matrix = tensors[GATE]
            tensors[GATE] = matrix.byte()[:, : matrix.shape[1] // 2].clone() if halved else matrix.byte()

        return self.tensors(pack)

    def media_without(self, *towers: str) -> Path:
        """A checkpoint that lost towers."""
        kept = tuple(modality for modality in (Modality.vision, Modality.audio) if modality.value not in towers)
        slice_checkpoint(self.media, self.room / "lost", SubModel(SliceSpec.full(TINY_TEXT), modalities=kept))
        return self.room / "lost"

    def of_the_first_release(self) -> Path:
        """A checkpoint whose vision tower is of the older layout."""
        directory = self.copy_of(self.media)
        tensors = load_file(directory / WEIGHTS_FILE)
        del tensors[STEM_BIAS]
        save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        return directory

    def altered(self, directory: Path) -> Path:
        """A checkpoint of which somebody edited the config, to no effect."""
        path = directory / CONFIG_FILE
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
        return directory

    def short(self) -> Path:
        """A slice of ``weights``: six of its nine layers, half as wide."""
        spec = SliceSpec("short", (0, 1, 2, 6, 7, 8), (24,) * 6)
        slice_checkpoint(self.weights, self.room / "short", SubModel(spec))
        return self.room / "short"

    def table(self, widths: str = '"[48, 48]"', layers: int = 2) -> Path:
        """A table of one slice, named mine."""
        path = self.room / "mine.csv"
        path.write_text(f"{','.join(HEADER)}\nmine,{layers},1.91,50.90%,{widths},\n", encoding="utf-8")
        return path

    def file(self, name: str, content: str) -> Path:
        """A file of this text."""
        path = self.room / name
        path.write_text(content, encoding="utf-8")
        return path

    def link(self, to: Path) -> Path:
        """Another name of a directory."""
        (self.room / "link").symlink_to(to, target_is_directory=True)
        return self.room / "link"
