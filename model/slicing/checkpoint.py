# SPDX-License-Identifier: Apache-2.0
"""The disk carrier: a smaller checkpoint from a larger one, one tensor at a time.

Everything the parent's files hold is carried along: towers, a stored head, and the keys and values
of readers that other loaders may ask for.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoint.directory import check_target
from model.checkpoint.load import check_tensors
from model.checkpoint.reader import Checkpoint
from model.checkpoint.writer import SHARD_BYTES, write_checkpoint
from model.config import CONFIG_FILE
from model.slicing.config import slice_config
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.cuts import place
from model.slicing.spec import SliceSpec

LINEAGE_FILE = "slice.json"
CARRIED_FILES = (  # the same for every size of a model
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "generation_config.json", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip


def slice_checkpoint(
    source: Checkpoint | Path | str,
    target: Path | str,
    spec: SliceSpec,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write the sub-model ``spec`` of a checkpoint as a checkpoint of its own.

    Needs memory for one shard. Beside the weights it writes the sliced ``config.json``, copies of the
    tokenizer and processor files, and ``slice.json``, which says of which parent this is which part.

    Args:
        source: The parent, or its directory.
        target: A directory that does not exist or is empty.
        spec: The part of the parent that is written.
        max_shard_bytes: Size of a weight file; a single larger tensor gets a file of its own.
        overwrite: Whether another checkpoint at ``target`` may be replaced.

    Raises:
        CheckpointError: The source is incomplete, or the target in use.
        SliceError: The spec does not fit the source.
    """
    parent, target = source if isinstance(source, Checkpoint) else Checkpoint.open(source), Path(target)
    config = slice_config(parent.config, spec)
    check_target(target, overwrite=overwrite, marker=CONFIG_FILE)
    check_tensors(parent)

    def add_files(directory: Path) -> None:
        carry_files(parent.path, directory)
        lineage = json.dumps(lineage_of(parent, spec), indent=2) + "\n"
        (directory / LINEAGE_FILE).write_text(lineage, encoding="utf-8")

    tensors = parts(parent, spec)
    write_checkpoint(
        tensors, config, target, max_shard_bytes=max_shard_bytes, overwrite=overwrite, extras=add_files
    )  # fmt: skip


def parts(source: Checkpoint, spec: SliceSpec) -> Iterator[tuple[str, Tensor]]:
    """The sub-model's tensors, each read when it is asked for."""
    for name in source.names():
        if placement := place(name, spec, source.config.text):
            yield placement.name, source.part(name, placement)


def carry_files(source: Path, directory: Path) -> None:
    """Copy the tokenizer and processor files that a checkpoint directory has."""
    for name in CARRIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def lineage_of(source: Checkpoint, spec: SliceSpec) -> dict[str, Any]:
    """The content of ``slice.json``: the parent's fingerprint (and its own lineage), the spec, the sizes."""
    config = source.config.text
    used, published = (text_shapes(config, layout).items() for layout in (Layout.used, Layout.published))
    parent: dict[str, Any] = {"layers": config.num_hidden_layers, "sha256": source.file_hashes()}
    if (source.path / LINEAGE_FILE).is_file():
        parent["slice"] = json.loads((source.path / LINEAGE_FILE).read_text(encoding="utf-8"))
    return {
        "spec": dataclasses.asdict(spec),
        "parent": parent,
        "text_parameters": count_parameters(used, spec, config),
        "effective_parameters": count_effective_parameters(used, spec, config),
        "effective_parameters_in_published_layout": count_effective_parameters(published, spec, config),
    }
