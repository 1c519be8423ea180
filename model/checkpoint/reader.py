# SPDX-License-Identifier: Apache-2.0
"""A checkpoint directory, read lazily: headers at once, bytes of tensors only when asked for. Needs no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint.format import StoredTensor, read_header
from model.checkpoint.names import ours
from model.config import ModelConfig
from model.errors import CheckpointError
from model.json_object import json_object

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
HASH_BLOCK_BYTES = 1 << 24
SAMPLES, SAMPLE_BYTES = 4, 1024  # of every tensor, for the fingerprint


class Checkpoint:
    """A directory of published layout: ``config.json`` and one or several safetensors files.

    Tensors go by our names, whichever published variant the files use.
    """

    def __init__(self, path: Path, config: ModelConfig, tensors: dict[str, StoredTensor]):
        self.path = path
        self.config = config
        self.tensors = tensors  # by our name

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
        tensors: dict[str, StoredTensor] = {}
        for name, listed in weight_files(path).items():
            found = read_header(path / name)
            check_against_index(path / name, set(found), listed)
            for file_name, tensor in sorted(found.items()):
                own = ours(file_name)
                if own in tensors:
                    raise CheckpointError(
                        f"{path}: tensor '{own}' is there twice, in {tensors[own].path.name} and {name}"
                    )
                tensors[own] = tensor
        return cls(path, config, tensors)

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self.tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """A tensor's dtype as the file spells it, such as BF16."""
        return self.tensors[name].dtype

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies."""
        return self.tensors[name]

    def fingerprint(self) -> str:
        """SHA-256 of names, dtypes and shapes, and of a few bytes from all over every tensor.

        It takes a second where hashing every byte takes the time of reading them all. Training, merging or
        rounding a model changes it; storing the same tensors in other files does not.
        """
        digest = hashlib.sha256()
        for name in self.names():
            tensor = self.tensors[name]
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            with tensor.path.open("rb", buffering=0) as file:
                for sample in range(SAMPLES):
                    at = (tensor.nbytes - SAMPLE_BYTES) * sample // (SAMPLES - 1)
                    digest.update(os.pread(file.fileno(), min(SAMPLE_BYTES, tensor.nbytes), tensor.start + max(0, at)))
        return digest.hexdigest()


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
        homes = json_object((path / INDEX_FILE).read_bytes())["weight_map"].items()
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
