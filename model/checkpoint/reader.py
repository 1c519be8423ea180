# SPDX-License-Identifier: Apache-2.0
"""A checkpoint directory, read lazily: headers at once, tensors (or parts of them) when asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoint.names import ours
from model.checkpoint.writer import INDEX_FILE, WEIGHTS_FILE
from model.config import ModelConfig
from model.errors import CheckpointError
from model.slicing.cuts import Placement

HASH_BLOCK_BYTES = 1 << 24


class Checkpoint:
    """A directory of published layout: ``config.json`` and one or several safetensors files.

    Tensors go by our names, whichever published variant the files use.
    """

    def __init__(self, path: Path, config: ModelConfig, files: dict[str, Any], homes: dict[str, tuple[str, str]]):
        self.path = path
        self.config = config
        self.files = files  # file name -> open safetensors file
        self.homes = homes  # our name -> (file name, name in the file)

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Open a checkpoint directory and read its headers.

        Raises:
            CheckpointError: The directory or a weight file is missing, cut short, or contradicts the index.
            ConfigError: ``config.json`` is missing or of another model.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such directory; give the directory of a checkpoint")
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise CheckpointError(f"{path}: is an adapter, not a model; give its base model here")
        config = ModelConfig.read(path)
        files, homes = {}, {}
        for name, listed in weight_files(path).items():
            files[name] = open_file(path / name)
            found = set(files[name].keys())
            check_against_index(path / name, found, listed)
            for file_name in sorted(found):
                own = ours(file_name)
                if own in homes:
                    raise CheckpointError(f"{path}: tensor '{own}' is there twice, in {homes[own][0]} and {name}")
                homes[own] = (name, file_name)
        return cls(path, config, files, homes)

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self.homes))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return tuple(self.slice_of(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """One whole tensor, on the CPU, in the dtype of the file."""
        return self.part(name, Placement(name))

    def part(self, name: str, placement: Placement) -> Tensor:
        """The part of one tensor that ``placement`` keeps; only that part is read from disk.

        Raises:
            CheckpointError: The file cannot be read.
        """
        file, file_name = self.homes[name]
        try:
            if placement.axis is None:
                return self.files[file].get_tensor(file_name)
            return placement.take(self.slice_of(name)).contiguous()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path / file}: cannot read '{file_name}' ({error})") from error

    def slice_of(self, name: str) -> Any:
        """safetensors' view of one tensor that is still on disk."""
        file, file_name = self.homes[name]
        return self.files[file].get_slice(file_name)

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of each weight file, as the hub shows it; reads every byte."""
        return {name: sha256(self.path / name) for name in sorted(self.files)}


def weight_files(path: Path) -> dict[str, set[str] | None]:
    """Names of the weight files, each with the tensors the index says it holds (None: there is no index).

    Raises:
        CheckpointError: There are none, there are two sets of them, or the index names a missing one.
    """
    has_one, has_index = (path / WEIGHTS_FILE).is_file(), (path / INDEX_FILE).is_file()
    if has_one and has_index:
        raise CheckpointError(f"{path}: holds both {WEIGHTS_FILE} and {INDEX_FILE}; remove the one that is stale")
    if has_one:
        return {WEIGHTS_FILE: None}
    if not has_index:
        raise CheckpointError(f"{path}: no {WEIGHTS_FILE} or {INDEX_FILE} there; only safetensors are read")
    try:
        homes = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].items()
        if not all(isinstance(name, str) for _, name in homes):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path / INDEX_FILE}: not an index (JSON with a 'weight_map'); copy it anew") from None
    listed: dict[str, set[str] | None] = {}
    for tensor, name in sorted(homes):
        tensors = listed.setdefault(name, set())
        assert tensors is not None
        tensors.add(tensor)
    if missing := [name for name in listed if not (path / name).is_file()]:
        raise CheckpointError(f"{path}: {INDEX_FILE} names {first_few(missing)}, which is not there; copy it too")
    return listed


def open_file(path: Path) -> Any:
    """An open safetensors file, or CheckpointError."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cut short or not a safetensors file ({error}); copy it anew") from error


def check_against_index(path: Path, found: set[str], listed: set[str] | None) -> None:
    """Raise CheckpointError where a weight file and the index disagree about what it holds."""
    if listed is None or found == listed:
        return
    lacking, surplus = sorted(listed - found), sorted(found - listed)
    parts = [f"{what} {first_few(names)}" for what, names in (("lacks", lacking), ("also has", surplus)) if names]
    raise CheckpointError(
        f"{path}: {' and '.join(parts)}, unlike {INDEX_FILE} says; the files are not of one checkpoint"
    )


def first_few(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
