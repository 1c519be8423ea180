# SPDX-License-Identifier: Apache-2.0
"""Fold an adapter into the weights it was trained on; all else in the checkpoint stays as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.adapter.lora import check_adapter, load_adapter, merge
from model.checkpoint.blocks import StoredPart
from model.checkpoint.load import load
from model.checkpoint.names import TOKEN_TABLE, in_file
from model.checkpoint.reader import Checkpoint, sha256
from model.checkpoint.saving import LivePart
from model.checkpoint.tensors import dtype_of
from model.checkpoint.writer import SHARD_BYTES, Part, write_checkpoint
from model.gemma3n import Gemma3n
from model.slicing.adapter import ADAPTER_WEIGHTS_FILE
from model.slicing.checkpoint import carry_files
from model.slicing.cuts import Placement
from model.slicing.lineage import LINEAGE_FILE, check_lineage, read_lineage, write_card, write_lineage
from recipes.locate import find_checkpoint
from recipes.output import check_new_directory
from recipes.program import start


@dataclass(kw_only=True, slots=True)
class MergeRecipe:
    """Fold an adapter into the weights it was trained on."""

    checkpoint: str  # directory or hub name of published weights
    adapter_path: Path  # directory of a trained adapter
    output: Path  # new directory


def run(recipe: MergeRecipe) -> None:
    """Merge, and say where the result is."""
    check_new_directory(recipe.output)
    merge_into(find_checkpoint(recipe.checkpoint), recipe.adapter_path, recipe.output)
    print(f"merged: {recipe.output}")


def merge_into(checkpoint: Path, adapter: Path, output: Path, *, max_shard_bytes: int = SHARD_BYTES) -> None:
    """Write a checkpoint with the adapter's updates added, those of towers too, in the dtype it is stored in.

    Raises:
        CheckpointError: Checkpoint and adapter do not fit, or ``output`` is in use.
    """
    source = Checkpoint.open(checkpoint)
    check_adapter(source.config, adapter)
    lineage = None
    if (source.path / LINEAGE_FILE).is_file():
        merged_from = {"merged": {"sha256": {ADAPTER_WEIGHTS_FILE: sha256(adapter / ADAPTER_WEIGHTS_FILE)}}}
        lineage = read_lineage(source.path) | merged_from
        check_lineage(lineage, source.config, str(source.path / LINEAGE_FILE))
    merged = merge(load_adapter(load(checkpoint, dtype=dtype_of(source, TOKEN_TABLE)), adapter))

    def add_files(directory: Path, hashes: Mapping[str, str]) -> None:
        carry_files(source.path, directory)
        if lineage is not None:
            write_card(lineage, source.config, directory)
            write_lineage(lineage, hashes, directory)

    write_checkpoint(
        with_updates(source, merged), source.config, output, max_shard_bytes=max_shard_bytes, extras=add_files
    )


def with_updates(source: Checkpoint, merged: Gemma3n) -> Iterator[Part]:
    """The tensors of a checkpoint, those that the model computes with from ``merged``."""
    updated = dict(merged.named_parameters())
    for name in source.names():
        # A stored copy of the head stays one: no adapter that merges changes the token table.
        written = in_file(name, source.config)
        updated_part = LivePart(written, updated[name].detach()) if name in updated else None
        yield updated_part or StoredPart(source.stored(name), Placement(written))


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("merge", MergeRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
