# SPDX-License-Identifier: Apache-2.0
"""Soft tokens on disk: a picture that a frozen tower has seen once is neither decoded nor seen again.

One file per item, named by a hash of all that decides its numbers: the medium's content, what is done to it before
the tower, the tower's weights and their dtype, the kind of device and the version of torch. So one directory serves
any number of runs, and nothing in it has to be deleted for being out of date; nothing ever is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from model.errors import ConfigError
from model.gemma3n import Gemma3n
from model.inputs import SoftTokens
from model.processor.media import Picture, Recording
from model.processor.processor import Processor

FORMAT = "1"  # raised when the same key would no longer mean the same numbers
DIGEST_BYTES = hashlib.sha256().digest_size


class SoftTokenCache:
    """Soft tokens of single items, by medium; may be used by several threads and processes at a time.

    Args:
        directory: Where the files are; made if it is not there.
        keys: For each kind of medium, a hash of all that decides its soft tokens beside its content.

    Raises:
        ConfigError: There is something else of that name.
    """

    def __init__(self, directory: Path, keys: dict[type[Picture | Recording], str]) -> None:
        if directory.exists() and not directory.is_dir():
            raise ConfigError(f"soft_token_cache: '{directory}' is no directory; give a directory, or a new name")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.keys = keys
        self.digests: dict[Picture | Recording, str] = {}  # each file is read for its hash once in a run

    @classmethod
    def of(cls, directory: Path, gemma: Gemma3n, processor: Processor, device: torch.device) -> SoftTokenCache:
        """The cache of a model's towers as they are now, used on ``device``."""
        around = f"{FORMAT} {torch.__version__} {device.type}"
        towers = gemma.model
        keys: dict[type[Picture | Recording], str] = {}
        if towers.vision_tower is not None and processor.images is not None:
            keys[Picture] = f"{around} {processor.images.fingerprint} {fingerprint_of(towers.vision_tower)}"
        if towers.audio_tower is not None and processor.audio is not None:
            keys[Recording] = f"{around} {processor.audio.fingerprint} {fingerprint_of(towers.audio_tower)}"
        return cls(directory, keys)

    def path(self, medium: Picture | Recording) -> Path:
        """Where the soft tokens of a medium are, or would be.

        Raises:
            InputError: The medium cannot be read.
        """
        digest = self.digests.get(medium)
        if digest is None:
            digest = self.digests[medium] = medium.digest()
        key = hashlib.sha256(f"{self.keys[type(medium)]} {digest}".encode()).hexdigest()
        return self.directory / key[:2] / f"{key}.soft_tokens"

    def read(self, medium: Picture | Recording) -> SoftTokens | None:
        """The soft tokens of a medium, as one item; None if they are not there, or the file is damaged.

        Raises:
            InputError: The medium cannot be read.
        """
        try:
            content = self.path(medium).read_bytes()
        except FileNotFoundError:
            return None
        digest, tensors = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(tensors).digest() != digest:
            return None
        return SoftTokens(**safetensors.torch.load(tensors))

    def write(self, medium: Picture | Recording, soft: SoftTokens) -> None:
        """Keep the soft tokens of one item; the file is there whole or not at all."""
        path = self.path(medium)
        path.parent.mkdir(exist_ok=True)
        tensors = safetensors.torch.save({
            field.name: getattr(soft, field.name).detach().cpu().contiguous() for field in dataclasses.fields(soft)
        })  # fmt: skip
        aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        aside.write_bytes(hashlib.sha256(tensors).digest() + tensors)
        aside.replace(path)


def fingerprint_of(tower: nn.Module) -> str:
    """A hash of a tower's weights, names, shapes and dtypes; some seconds for the published ones."""
    digest = hashlib.sha256()
    for name, parameter in tower.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
