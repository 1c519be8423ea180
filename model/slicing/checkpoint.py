# SPDX-License-Identifier: Apache-2.0
"""The disk carrier: a smaller checkpoint from a larger one, one tensor at a time.

Everything the parent's files hold is carried along: a stored head, the keys and values of readers that
other loaders may ask for, and towers unless they are to be left out.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoint.directory import check_target
from model.checkpoint.load import check_tensors
from model.checkpoint.names import modality_of
from model.checkpoint.reader import Checkpoint
from model.checkpoint.shapes import model_shapes
from model.checkpoint.writer import SHARD_BYTES, write_checkpoint
from model.config import CONFIG_FILE, ModelConfig
from model.processor.tokenizer import MEDIA_FILES, TEXT_FILES, TOKENIZER_FILE
from model.slicing.config import slice_config
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.cuts import place
from model.slicing.spec import SliceSpec
from model.tower_config import Modality

LINEAGE_FILE = "slice.json"
CARRIED_FILES = (TOKENIZER_FILE, *TEXT_FILES, "generation_config.json")  # the same for every size of a model


def slice_checkpoint(
    source: Checkpoint | Path | str,
    target: Path | str,
    spec: SliceSpec,
    *,
    modalities: Iterable[Modality] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write the sub-model ``spec`` of a checkpoint as a checkpoint of its own.

    Needs memory for one shard. Beside the weights it writes the sliced ``config.json``, copies of the
    tokenizer and processor files, and ``slice.json``, which says of which parent this is which part.

    Without both towers it is the checkpoint of a text-only model. Without one of them it is one that matslice
    reads, but not transformers, which knows no Gemma 3n with one tower.

    Args:
        source: The parent, or its directory.
        target: A directory that does not exist or is empty.
        spec: The part of the parent that is written.
        modalities: What the sub-model shall take in; other towers are left out, and need not be in order. None:
            all that the parent has.
        max_shard_bytes: Size of a weight file; a single larger tensor gets a file of its own.
        overwrite: Whether another checkpoint at ``target`` may be replaced.

    Raises:
        CheckpointError: The source is incomplete, or the target in use.
        ConfigError: The parent has no tower for one of the modalities.
        SliceError: The spec does not fit the source.
    """
    parent, target = source if isinstance(source, Checkpoint) else Checkpoint.open(source), Path(target)
    spec.check(parent.config.text)
    check_target(target, overwrite=overwrite, marker=CONFIG_FILE)
    wanted = check_tensors(parent, modalities)

    def add_files(directory: Path) -> None:
        carry_files(parent.path, directory, media=wanted.is_multimodal)
        lineage = json.dumps(lineage_of(parent, wanted, spec), indent=2) + "\n"
        (directory / LINEAGE_FILE).write_text(lineage, encoding="utf-8")

    write_checkpoint(
        parts(parent, wanted, spec),
        slice_config(wanted, spec),
        target,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
        extras=add_files,
    )


def parts(source: Checkpoint, wanted: ModelConfig, spec: SliceSpec) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the sub-model ``spec`` of what is wanted of a parent, each read when it is asked for."""
    for name in source.names():
        if modality_of(name) in wanted.modalities and (placement := place(name, spec, wanted.text)):
            yield placement.name, source.part(name, placement)


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


def lineage_of(source: Checkpoint, wanted: ModelConfig, spec: SliceSpec) -> dict[str, Any]:
    """The content of ``slice.json``: the parent's fingerprint (and its own lineage), the spec, the sizes.

    Args:
        source: The parent.
        wanted: Its config, without the towers that are left out.
        spec: The part of the parent.
    """
    config = wanted.text
    used, published = (text_shapes(config, layout).items() for layout in (Layout.used, Layout.published))
    parent: dict[str, Any] = {"layers": config.num_hidden_layers, "sha256": source.file_hashes()}
    if (source.path / LINEAGE_FILE).is_file():
        parent["slice"] = json.loads((source.path / LINEAGE_FILE).read_text(encoding="utf-8"))
    return {
        "spec": dataclasses.asdict(spec),
        "parent": parent,
        "modalities": list(wanted.modalities),
        "parameters": count_parameters(model_shapes(wanted, Layout.used).items(), spec, config),
        "text_parameters": count_parameters(used, spec, config),
        "effective_parameters": count_effective_parameters(used, spec, config),
        "effective_parameters_in_published_layout": count_effective_parameters(published, spec, config),
    }
