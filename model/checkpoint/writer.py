# SPDX-License-Identifier: Apache-2.0
"""Tensors to a checkpoint directory, streamed: shards of bounded size, an index, a rename at the end. Needs no torch.

Names, shapes and so every byte's place are known before the first is written; memory is a few blocks. Reading,
hashing and writing each wait for the disk or leave the interpreter, so threads overlap them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from model.checkpoint.blocks import BLOCK_BYTES, Block, Bytes
from model.checkpoint.directory import check_room, whole_directory
from model.checkpoint.format import header
from model.checkpoint.output_file import OutputFile
from model.checkpoint.reader import INDEX_FILE, WEIGHTS_FILE
from model.config import CONFIG_FILE, ModelConfig, TextConfig
from model.errors import CheckpointError

SHARD_BYTES = 5_000_000_000  # what the hub and its tools are used to
GENERATION_FILE = "generation_config.json"  # where transformers' generate looks for the ids to stop at
READERS = 2  # threads
BLOCKS_AHEAD = 12  # read but not written yet: writing waits for the disk now and then, reading goes on
BLOCKS_BEHIND = 2  # written but not hashed yet
Progress = Callable[[int, int], None]  # told how many bytes are written, of how many


@runtime_checkable
class Piece(Protocol):
    """A few megabytes of a tensor, read when asked for."""

    def read(self) -> Bytes:
        """The bytes."""
        ...


@runtime_checkable
class Part(Protocol):
    """A tensor to write: its place in the file is known from its shape, its bytes come in pieces."""

    @property
    def name(self) -> str:
        """The name in the file."""
        ...

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    def blocks(self) -> Iterable[Piece]:
        """All bytes of the tensor, in order."""
        ...


def write_checkpoint(
    parts: Iterable[Part],
    config: ModelConfig,
    target: Path,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    extras: Callable[[Path, Mapping[str, str]], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write tensors and their config as a checkpoint directory, which is whole or not there.

    Args:
        parts: The tensors, in the order they shall lie in the files.
        config: What ``config.json`` shall say.
        target: A directory that does not exist or is empty.
        max_shard_bytes: Size of a weight file; a single larger tensor gets a file of its own.
        overwrite: Whether another checkpoint at ``target`` may be replaced.
        extras: Called with the directory being written, and the SHA-256 of each weight file in it, to add files.
        progress: Told how many bytes of the weights are written, of how many.

    Raises:
        CheckpointError: ``target`` is in use, the disk has no room, a name comes twice, or a source cannot be read.
    """
    listed = list(parts)
    check_shards(listed, target, max_shard_bytes)
    with whole_directory(target, overwrite=overwrite, marker=CONFIG_FILE) as directory:
        fill(directory, listed, config, max_shard_bytes=max_shard_bytes, extras=extras, progress=progress)


def fill(
    directory: Path,
    parts: Sequence[Part],
    config: ModelConfig,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    extras: Callable[[Path, Mapping[str, str]], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a checkpoint into a directory that is empty and will get its name later; see ``write_checkpoint``.

    What makes it look whole comes last: until then nobody can read it as a checkpoint.
    """
    hashes = write_weights(parts, directory, max_shard_bytes, progress)
    config.write(directory)
    write_generation_config(config.text, directory)  # unless extras bring a fuller one
    if extras is not None:
        extras(directory, hashes)


def check_shards(parts: Sequence[Part], target: Path, max_shard_bytes: int = SHARD_BYTES) -> None:
    """Raise CheckpointError for what writing would fail of: too little room, a name that comes twice, no shard size."""
    shards(parts, max_shard_bytes)
    names = Counter(part.name for part in parts)
    if twice := [name for name, count in names.items() if count > 1]:
        raise CheckpointError(f"{target}: tensor '{twice[0]}' comes twice; every name may be written once")
    check_room(target, sum(part.nbytes for part in parts), marker=CONFIG_FILE)


def write_generation_config(config: TextConfig, directory: Path) -> None:
    """Tell transformers which ids end an answer, and no more: how to sample is for who generates to say."""
    content = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id),
        "pad_token_id": config.pad_token_id,
    }
    (directory / GENERATION_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(
    parts: Sequence[Part], directory: Path, max_shard_bytes: int, progress: Progress | None = None
) -> dict[str, str]:
    """Write the weight files, and their index if there are several; give each file's SHA-256."""
    homes: dict[str, str] = {}
    hashes: dict[str, str] = {}
    groups = shards(parts, max_shard_bytes)
    total_bytes, written_bytes = sum(part.nbytes for part in parts), 0

    def told(more_bytes: int) -> None:
        nonlocal written_bytes
        written_bytes += more_bytes
        if progress is not None:
            progress(written_bytes, total_bytes)

    for number, group in enumerate(groups, start=1):
        name = WEIGHTS_FILE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        for part in group:
            homes[part.name] = name
        hashes[name] = write_file(directory / name, group, told)
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": total_bytes},
            "weight_map": {name: homes[name] for name in sorted(homes)},
        }
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return hashes


def shards(parts: Iterable[Part], max_shard_bytes: int) -> list[list[Part]]:
    """Group tensors in their order; a group exceeds the limit only if it holds a single tensor.

    Raises:
        CheckpointError: The limit is not a positive number.
    """
    if max_shard_bytes < 1:
        raise CheckpointError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1, and is in bytes")
    groups: list[list[Part]] = [[]]
    used_bytes = 0
    for part in parts:
        if groups[-1] and used_bytes + part.nbytes > max_shard_bytes:
            groups.append([])
            used_bytes = 0
        groups[-1].append(part)
        used_bytes += part.nbytes
    return groups


def write_file(path: Path, parts: Sequence[Part], told: Callable[[int], None] | None = None) -> str:
    """Write one safetensors file; give its SHA-256. ``told`` hears of bytes as they are written."""
    digest = hashlib.sha256()
    beginning = header((part.name, part.dtype, part.shape) for part in parts)
    digest.update(beginning)
    pieces = (piece for part in parts for piece in part.blocks())
    memory = Memory()
    hashing: deque[tuple[Future[None], Bytes]] = deque()
    nbytes = len(beginning) + sum(part.nbytes for part in parts)
    with (
        OutputFile(path, nbytes) as file,
        ThreadPoolExecutor(READERS) as readers,
        ThreadPoolExecutor(1) as hasher,
    ):
        file.write(np.frombuffer(beginning, dtype=np.uint8))
        for block in read_ahead(pieces, readers, memory):
            hashing.append((hasher.submit(digest.update, block.data), block))
            file.write(block)
            while len(hashing) > BLOCKS_BEHIND:
                done, hashed = hashing.popleft()
                done.result()
                memory.take_back(hashed)
            if told is not None:
                told(block.nbytes)
    return digest.hexdigest()


class Memory:
    """Arrays that blocks are read into, and once they are written the next ones; see ``blocks.Scratch`` for why."""

    def __init__(self) -> None:
        self.free: deque[Bytes] = deque()
        self.lent: dict[int, Bytes] = {}  # by the identity of the block that lies in it

    def read(self, piece: Piece) -> Bytes:
        """A piece's bytes; called by several threads."""
        if not isinstance(piece, Block) or piece.nbytes > BLOCK_BYTES:
            return piece.read()
        try:
            memory = self.free.pop()
        except IndexError:
            memory = np.empty(BLOCK_BYTES, dtype=np.uint8)
        block = memory[: piece.nbytes]
        self.lent[id(block)] = memory
        return piece.read(into=block)

    def take_back(self, block: Bytes) -> None:
        """Use the memory of a block again, if it was lent here; nobody may look at the block any more."""
        if (memory := self.lent.pop(id(block), None)) is not None:
            self.free.append(memory)


def read_ahead(pieces: Iterable[Piece], readers: ThreadPoolExecutor, memory: Memory) -> Iterator[Bytes]:
    """The pieces' bytes in order, the next few already on their way."""
    waiting: deque[Future[Bytes]] = deque()
    try:
        for piece in pieces:
            waiting.append(readers.submit(memory.read, piece))
            if len(waiting) > BLOCKS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()
