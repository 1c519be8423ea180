# SPDX-License-Identifier: Apache-2.0
"""Cut a smaller model out of a checkpoint; its adapter is cut alongside, or folded in."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from model.adapter.lora import PeftModel, load_adapter, merge
from model.checkpoint.directory import whole_directory
from model.checkpoint.load import load
from model.checkpoint.names import TOKEN_TABLE
from model.checkpoint.reader import Checkpoint
from model.config import CONFIG_FILE
from model.errors import CheckpointError, ConfigError
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.slicing.adapter import slice_adapter
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceSpec
from recipes.build import build_adapted, find_checkpoint
from recipes.merge import merge_into
from recipes.output import check_new_directory
from recipes.program import start
from recipes.schema import SliceRecipe

ADAPTER = "adapter"  # where a sliced adapter goes, inside the sliced checkpoint
CHECKED_TOKENS = 64
TOLERANCE = 1e-4  # of the largest score: float32 sums in another order, through all layers
# Merged in bfloat16, a sum may also be rounded to the other side: few weights, by their last bit.
MERGED_TOLERANCE = 1e-2


def run(recipe: SliceRecipe) -> None:
    """Slice, and say what came out."""
    check_new_directory(recipe.output)
    if recipe.merge and recipe.adapter_path is None:
        raise ConfigError("slice: merge=true needs an adapter to merge; give adapter_path=DIRECTORY")
    source = Checkpoint.open(find_checkpoint(recipe.checkpoint))
    spec = SliceSpec.resolve(recipe.slice, source.config.text)
    # With all that belongs to it, and checked, or not there.
    with whole_directory(recipe.output, marker=CONFIG_FILE) as directory:
        if recipe.adapter_path is None:
            slice_checkpoint(source, directory, spec)
        elif recipe.merge:
            slice_and_merge(source, recipe.adapter_path, directory, spec)
        else:
            slice_both(source, recipe.adapter_path, directory, spec)
        if recipe.check:
            check(source, recipe, spec, directory)
    shapes = text_shapes(source.config.text, Layout.used).items()
    parameters = count_parameters(shapes, spec, source.config.text)
    effective = count_effective_parameters(shapes, spec, source.config.text)
    print(f"{spec.name}: {parameters:,} text parameters, {effective:,} of them effective: {recipe.output}")


def slice_both(source: Checkpoint, adapter: Path, output: Path, spec: SliceSpec) -> None:
    """The checkpoint into ``output``, the adapter into a folder in it: cut first, being what may be refused."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as aside:
        slice_adapter(adapter, Path(aside, ADAPTER), spec, source.config.text)
        slice_checkpoint(source, output, spec)
        Path(aside, ADAPTER).rename(output / ADAPTER)


def slice_and_merge(source: Checkpoint, adapter: Path, output: Path, spec: SliceSpec) -> None:
    """The sub-model of the merged model. Slicing first gives the same weights and needs the smaller memory."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as aside:
        slice_adapter(adapter, Path(aside, ADAPTER), spec, source.config.text)
        slice_checkpoint(source, Path(aside, "model"), spec)
        merge_into(Path(aside, "model"), Path(aside, ADAPTER), output)


@torch.no_grad()
def check(source: Checkpoint, recipe: SliceRecipe, spec: SliceSpec, written: Path) -> None:
    """Run the parent under ``spec`` and what was ``written`` on the same tokens.

    Raises:
        CheckpointError: They do not agree.
    """
    stored = source.tensor(TOKEN_TABLE).dtype
    if recipe.merge and recipe.adapter_path is not None:
        whole = merged_as_stored(source, recipe.adapter_path)
    else:
        whole = adapted(source.path, recipe.adapter_path)
    tokens = torch.randint(source.config.text.vocab_size_per_layer_input, (1, CHECKED_TOKENS), generator=seeded())
    expected = whole(Inputs.of(tokens), spec=spec).logits
    del whole
    small = adapted(written, None if recipe.adapter_path is None or recipe.merge else written / ADAPTER)
    error = (small(Inputs.of(tokens)).logits - expected).abs().max().item() / expected.abs().max().item()
    allowed = MERGED_TOLERANCE if recipe.merge and stored is not torch.float32 else TOLERANCE
    if not error <= allowed:
        raise CheckpointError(
            f"{recipe.output}: the slice differs from its parent under the same spec by {error:.1e} of the largest"
            f" score (allowed {allowed:.0e}), so it was not kept"
        )
    print(f"checked: differs from its parent under the same spec by {error:.1e} of the largest score")


def adapted(checkpoint: Path, adapter: Path | None) -> Gemma3n | PeftModel:
    """A model to compute with as exactly as can be."""
    return build_adapted(checkpoint, adapter, dtype=torch.float32, device=torch.device("cpu"))


def merged_as_stored(source: Checkpoint, adapter: Path) -> Gemma3n:
    """The parent with its adapter merged: rounded to the dtype it is stored in, as the slice's weights are."""
    return merge(load_adapter(load(source.path, dtype=source.tensor(TOKEN_TABLE).dtype), adapter)).float()


def seeded() -> torch.Generator:
    """The same tokens every time."""
    return torch.Generator().manual_seed(0)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("slice", run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
