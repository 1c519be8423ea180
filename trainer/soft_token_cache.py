# SPDX-License-Identifier: Apache-2.0
"""Soft tokens on disk: a picture that a frozen tower has seen once is neither decoded nor seen again.

One file per item, named by a hash of all that decides its numbers: the medium's content, what is done to it before
the tower, the tower's config, its weights and their dtype, the strength of an adapter on it, the kind of device and
the versions of what decodes and computes. So one directory serves any number of runs, and nothing in it has to be
deleted for being out of date; nothing ever is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch

from model.audio.tower import AudioTower
from model.errors import ConfigError
from model.gemma3n import Gemma3n
from model.inputs import SoftTokens
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.vision.tower import VisionTower

FORMAT = "2"  # raised when the same key would no longer mean the same numbers
PACKAGES = ("torch", "numpy", "pillow", "soundfile", "soxr")  # that decode media, prepare them and compute
ADAPTER_STATE = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")  # PEFT's, beside its weights
DIGEST_BYTES = hashlib.sha256().digest_size


class SoftTokenCache:
    """Soft tokens of single items, by medium; may be used by several threads and processes at a time.

    Args:
        directory: Where the files are; made if it is not there.
        keys: For each kind of medium, a hash of all that decides its soft tokens beside its content.

    Raises:
        ConfigError: The directory cannot be made, or not be written to.
    """

    def __init__(self, directory: Path, keys: dict[type[Picture | Recording], str]) -> None:
        make_directory(directory)
        self.directory = directory
        self.keys = keys
        self.digests: dict[Picture | Recording, str] = {}  # each file is read for its hash once in a run

    @classmethod
    def of(cls, directory: Path, gemma: Gemma3n, processor: Processor, device: torch.device) -> SoftTokenCache:
        """The cache of a model's towers as they are now, used on ``device``."""
        around = f"{FORMAT} {' '.join(map(version, PACKAGES))} {device.type}"
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
        """The soft tokens of a medium, as one item; None if they are not there, or the file cannot be used.

        Raises:
            InputError: The medium cannot be read.
        """
        path = self.path(medium)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, tensors = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(tensors).digest() != digest:
            return None
        return SoftTokens(**safetensors.torch.load(tensors))

    def write(self, medium: Picture | Recording, soft: SoftTokens) -> None:
        """Keep the soft tokens of one item; the file is there whole or not at all.

        Raises:
            ConfigError: It cannot be written, as on a full disk.
        """
        path = self.path(medium)
        tensors = safetensors.torch.save({
            field.name: getattr(soft, field.name).detach().cpu().contiguous() for field in dataclasses.fields(soft)
        })  # fmt: skip
        aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(exist_ok=True)
            aside.write_bytes(hashlib.sha256(tensors).digest() + tensors)
            aside.replace(path)
        except BaseException as error:
            aside.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            if path.is_dir():  # somebody's; it is left alone, and the item made whenever it is needed
                return
            raise ConfigError(
                f"soft_token_cache: '{path}' cannot be written ({error.strerror}); make room for it, give another"
                " directory, or leave soft_token_cache out"
            ) from None


def make_directory(directory: Path, *, key: str = "soft_token_cache") -> None:
    """Make a directory to keep soft tokens in, and see that files can be written there.

    Raises:
        ConfigError: They cannot; ``key`` is the setting to name.
    """
    probe = directory / f"probe.{os.getpid()}.{threading.get_ident()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{key}: '{directory}' is no directory that can be written to ({error.strerror}); give another, or a new"
            " name"
        ) from None


def fingerprint_of(tower: VisionTower | AudioTower) -> str:
    """A hash of a tower: its config, weights, names, shapes and dtypes; some seconds for the published ones.

    Of an adapter on it the weights are among the tower's, but not how strongly they count.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(tower.config), sort_keys=True).encode())
    for name, module in tower.named_modules():
        adapted = {key: repr(getattr(module, key)) for key in ADAPTER_STATE if hasattr(module, key)}
        digest.update(f"{name} {adapted}\n".encode())
    for name, parameter in tower.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
