# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and data files as they go wrong in life: cut short, incomplete, of another model, hand-edited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.parts import write_jsonl

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
USER, ASSISTANT = {"role": "user", "content": "say abc"}, {"role": "assistant", "content": "abc"}


@dataclass(frozen=True)
class Places:
    """What is right on disk, and room for what is not."""

    weights: Path
    adapter: Path
    chat: Path
    room: Path

    @property
    def output(self) -> Path:
        return self.room / "out"

    def copy(self) -> Path:
        """A checkpoint to be broken."""
        return Path(shutil.copytree(self.weights, self.room / "broken"))

    def tensors(self, change: Callable[[dict[str, Tensor]], object]) -> Path:
        """A checkpoint with other tensors than its config says."""
        directory = self.copy()
        tensors = load_file(directory / WEIGHTS_FILE)
        change(tensors)
        save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        return directory

    def cut_short(self) -> Path:
        """A download that was interrupted."""
        directory = self.copy()
        with (directory / WEIGHTS_FILE).open("r+b") as file:
            file.truncate((directory / WEIGHTS_FILE).stat().st_size // 2)
        return directory

    def config(self, **changes: object) -> Path:
        """A checkpoint whose config says something else."""
        directory = self.copy()
        path = directory / CONFIG_FILE
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
        return directory

    def without(self, name: str) -> Path:
        """A checkpoint that lacks a file."""
        directory = self.copy()
        (directory / name).unlink()
        return directory

    def adapter_of_another(self) -> Path:
        """An adapter of a wider model."""
        directory = Path(shutil.copytree(self.adapter, self.room / "lora"))
        path = directory / "adapter_model.safetensors"
        wider = {name: torch.cat((tensor, tensor), dim=-1) for name, tensor in load_file(path).items()}
        save_file(wider, path, metadata={"format": "pt"})
        return directory

    def data(self, *lines: object) -> Path:
        """A file of these rows; texts are lines as they are."""
        return write_jsonl(self.room / "rows.jsonl", lines)

    def empty(self, name: str) -> Path:
        """A directory with nothing in it."""
        directory = self.room / name
        directory.mkdir()
        return directory

    def full(self) -> Path:
        """An output that is already there."""
        (self.empty("out") / "precious.txt").write_text("", encoding="utf-8")
        return self.output


def turns(*messages: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """A row of these turns."""
    return {"messages": list(messages)}
