# SPDX-License-Identifier: Apache-2.0
"""The disk carrier: a smaller checkpoint from a larger one, byte range by byte range. Needs no torch.

Everything the parent's files hold is carried along: a stored head, the keys and values of readers that
other loaders may ask for, and towers unless they are to be left out.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.checkpoint.blocks import StoredPart
from model.checkpoint.checking import check_head, check_tensors
from model.checkpoint.directory import check_target, whole_directory
from model.checkpoint.names import TOKEN_TABLE, in_file, modality_of, unused
from model.checkpoint.reader import Checkpoint
from model.checkpoint.writer import SHARD_BYTES, Part, Progress, check_shards, fill
from model.config import CONFIG_FILE, ModelConfig
from model.errors import CheckpointError
from model.processor.tokenizer import MEDIA_FILES, TEXT_FILES, TOKENIZER_FILE
from model.processor.trimming import Trimming, files_without_processor, trimmed_files
from model.slicing.config import slice_config
from model.slicing.cuts import place
from model.slicing.dead_kv import DeadKV, fillers
from model.slicing.lineage import lineage_of, write_card, write_lineage
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary

CARRIED_FILES = (TOKENIZER_FILE, *TEXT_FILES, "generation_config.json")  # the same for every size of a model


def slice_checkpoint(
    source: Checkpoint | Path | str,
    target: Path | str,
    sub: SubModel,
    *,
    dead_kv: DeadKV = DeadKV.keep,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the part ``sub`` of a checkpoint as a checkpoint of its own.

    Needs memory for a few blocks of bytes, whatever the size of a tensor. Beside the weights it writes the sliced
    ``config.json``, copies of the tokenizer and processor files, a model card, and ``slice.json``, which says of
    which parent this is which part, and what every file's SHA-256 is.

    Without both towers it is the checkpoint of a text-only model. Without one of them it is one that matslice
    reads, but not transformers, which knows no Gemma 3n with one tower.

    Args:
        source: The parent, or its directory.
        target: A directory that does not exist or is empty.
        sub: The part of the parent that is written; towers it leaves out need not be in order.
        dead_kv: What becomes of keys and values that nothing computes with.
        max_shard_bytes: Size of a weight file; a single larger tensor gets a file of its own.
        overwrite: Whether another checkpoint at ``target`` may be replaced, if nothing else lies in it.
        progress: Told how many bytes of the weights are written, of how many.

    Raises:
        CheckpointError: The source is incomplete or has a head of its own, the target is in use or holds something
            that is not of a checkpoint, or the disk has no room.
        ConfigError: The parent has no tower for one of the modalities.
        SliceError: The sub-model does not fit the source.
    """
    target = Path(target)
    cut = prepare_slice(
        source, target, sub, dead_kv=dead_kv, max_shard_bytes=max_shard_bytes, overwrite=overwrite
    )  # fmt: skip
    with whole_directory(target, overwrite=overwrite, marker=CONFIG_FILE) as directory:
        cut.write(directory, progress)


@dataclass(frozen=True)
class Cut:
    """A slice that nothing speaks against, of which no byte is written yet."""

    parent: Checkpoint
    small: ModelConfig  # the sub-model's
    tensors: Sequence[Part]
    lineage: dict[str, Any]
    carry: Callable[[Path], None]  # puts what belongs beside the weights into a directory
    max_shard_bytes: int

    @property
    def nbytes(self) -> int:
        """Size of the weights in bytes."""
        return sum(part.nbytes for part in self.tensors)

    def of_parent_named(self, name: str) -> Cut:
        """The same of a parent that has this name on the hub."""
        return replace(self, lineage=self.lineage | {"parent": self.lineage["parent"] | {"name": name}})

    def write(self, directory: Path, progress: Progress | None = None) -> None:
        """Write it into an empty directory that gets its name when it is whole."""

        def add_files(directory: Path, hashes: Mapping[str, str]) -> None:
            self.carry(directory)
            write_card(self.lineage, self.small, directory)
            write_lineage(self.lineage, hashes, directory)

        fill(
            directory,
            self.tensors,
            self.small,
            max_shard_bytes=self.max_shard_bytes,
            extras=add_files,
            progress=progress,
        )


def prepare_slice(
    source: Checkpoint | Path | str,
    target: Path | str,
    sub: SubModel,
    *,
    dead_kv: DeadKV = DeadKV.keep,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    trimming: Trimming | None = None,
) -> Cut:
    """Look at all that ``slice_checkpoint`` can be refused for, with its arguments and errors; nothing is written.

    ``trimming`` is of the parent's tokenizer, if it was read already.
    """
    parent, target = source if isinstance(source, Checkpoint) else Checkpoint.open(source), Path(target)
    sub.check(parent.config)
    refuse_within(parent.path, target)
    check_target(target, overwrite=overwrite, marker=CONFIG_FILE)
    wanted = check_tensors(parent, sub.modalities)
    check_head(parent)
    small = slice_config(parent.config, sub)
    tensors = list(parts(parent, wanted, sub, dead_kv, small))
    check_shards(tensors, target, max_shard_bytes)
    lineage = lineage_of(parent, wanted, sub, dead_kv)
    carry = carrier_of_files(parent.path, sub.vocabulary, media=wanted.is_multimodal, trimming=trimming)
    return Cut(parent, small, tensors, lineage, carry, max_shard_bytes)


def parts(
    source: Checkpoint, wanted: ModelConfig, sub: SubModel, dead_kv: DeadKV, small: ModelConfig
) -> Iterator[Part]:
    """The tensors of the part ``sub`` of what is wanted of a parent, in the order the parent's files have them."""
    dead = unused(wanted.text) if dead_kv is not DeadKV.keep else {}
    stored = sorted((source.stored(name) for name in source.names()), key=lambda tensor: (tensor.path, tensor.start))
    names = {(tensor.path, tensor.name): name for name, tensor in source.tensors.items()}
    for tensor in stored:
        name = names[tensor.path, tensor.name]
        if modality_of(name) in wanted.modalities and name not in dead and (found := place(name, sub, wanted.text)):
            yield StoredPart(tensor, dataclasses.replace(found, name=in_file(found.name, small)))
    if dead_kv is DeadKV.zeros:
        for part in fillers(small.text, source.dtype(TOKEN_TABLE)):
            yield dataclasses.replace(part, name=in_file(part.name, small))


def refuse_within(source: Path, target: Path, *, whose: str = "the parent's") -> None:
    """Raise CheckpointError if the target is the source, lies in it, or holds it, and so would replace it."""
    inside, outside = (Path(os.path.realpath(path)) for path in (target, source))  # links may lead in a circle
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise CheckpointError(
            f"{target}: is {whose} own directory {source}, lies in it, or holds it; choose another place"
        )


def write_files(files: Mapping[str, bytes], directory: Path) -> None:
    """Write files of these names into a directory."""
    for name, content in files.items():
        (directory / name).write_bytes(content)


def carrier_of_files(
    source: Path, vocabulary: Vocabulary | None, *, media: bool, trimming: Trimming | None = None
) -> Callable[[Path], None]:
    """What puts the parent's tokenizer and processor files into a directory, with the ids of the vocabulary.

    Raises:
        CheckpointError: A file cannot be read, or the tokenizer be trimmed, which is found out before anything is
            written.
    """
    if vocabulary is None:
        changed = {} if media else files_without_processor(source)

        def carry(directory: Path) -> None:
            carry_files(source, directory, media=media)
            write_files(changed, directory)

        return carry
    trimmed = trimmed_files(source, vocabulary, media=media, trimming=trimming)
    return lambda directory: write_files(trimmed, directory)


def carry_files(source: Path, directory: Path, *, media: bool = True) -> None:
    """Copy the tokenizer and processor files that a checkpoint directory has.

    Args:
        source: The checkpoint.
        directory: Where to.
        media: Whether to copy what images and sound are processed by, which a text-only model has no use for.
    """
    for name in (*CARRIED_FILES, *(MEDIA_FILES if media else ())):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
