# SPDX-License-Identifier: Apache-2.0
"""Cut a smaller model out of a checkpoint; its adapter is cut alongside, or folded in."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoint.reader import Checkpoint
from model.errors import CheckpointError, ConfigError
from model.inputs import Inputs
from model.slicing.adapter import slice_adapter
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceSpec
from recipes.build import build_adapted, find_checkpoint, refuse_existing
from recipes.merge import merge_into
from recipes.program import start
from recipes.schema import SliceRecipe

ADAPTER = "adapter"  # where a sliced adapter goes, inside the sliced checkpoint
CHECKED_TOKENS = 64
TOLERANCE = 1e-4  # of the largest score: float32 sums in another order, through all layers


def run(recipe: SliceRecipe) -> None:
    """Slice, and say what came out."""
    refuse_existing(recipe.output)
    if recipe.merge and recipe.adapter_path is None:
        raise ConfigError("slice: merge=true needs an adapter to merge; give adapter_path=DIRECTORY")
    source = Checkpoint.open(find_checkpoint(recipe.checkpoint))
    spec = SliceSpec.resolve(recipe.slice, source.config.text)
    if recipe.adapter_path is None:
        slice_checkpoint(source, recipe.output, spec)
    elif recipe.merge:
        slice_and_merge(source, recipe.adapter_path, recipe.output, spec)
    else:
        slice_both(source, recipe.adapter_path, recipe.output, spec)
    if recipe.check:
        check(source.path, recipe, spec)
    shapes = text_shapes(source.config.text, Layout.used).items()
    parameters = count_parameters(shapes, spec, source.config.text)
    effective = count_effective_parameters(shapes, spec, source.config.text)
    print(f"{spec.name}: {parameters:,} text parameters, {effective:,} of them effective: {recipe.output}")


def slice_both(source: Checkpoint, adapter: Path, output: Path, spec: SliceSpec) -> None:
    """The checkpoint into ``output``, the adapter into a folder in it: cut first, being what may be refused."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as aside:
        slice_adapter(adapter, Path(aside, ADAPTER), spec, source.config.text)
        slice_checkpoint(source, output, spec)
        Path(aside, ADAPTER).rename(output / ADAPTER)


def slice_and_merge(source: Checkpoint, adapter: Path, output: Path, spec: SliceSpec) -> None:
    """The sub-model of the merged model. Slicing first gives the same weights and needs the smaller memory."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as aside:
        slice_adapter(adapter, Path(aside, ADAPTER), spec, source.config.text)
        slice_checkpoint(source, Path(aside, "model"), spec)
        merge_into(Path(aside, "model"), Path(aside, ADAPTER), output)


@torch.no_grad()
def check(parent: Path, recipe: SliceRecipe, spec: SliceSpec) -> None:
    """Run the parent under ``spec`` and the result on the same tokens.

    Raises:
        CheckpointError: They do not agree.
    """
    cpu = torch.device("cpu")
    apart = None if recipe.adapter_path is None or recipe.merge else recipe.output / ADAPTER
    whole = build_adapted(parent, recipe.adapter_path, dtype=torch.float32, device=cpu)
    tokens = torch.randint(whole.config.text.vocab_size_per_layer_input, (1, CHECKED_TOKENS), generator=seeded())
    expected = whole(Inputs.of(tokens), spec=spec).logits
    del whole
    small = build_adapted(recipe.output, apart, dtype=torch.float32, device=cpu)
    error = (small(Inputs.of(tokens)).logits - expected).abs().max().item() / expected.abs().max().item()
    if not error <= TOLERANCE:
        raise CheckpointError(
            f"{recipe.output}: differs from its parent under the same spec by {error:.1e} of the largest score"
            f" (allowed {TOLERANCE:.0e}); do not use it"
        )
    print(f"checked: differs from its parent under the same spec by {error:.1e} of the largest score")


def seeded() -> torch.Generator:
    """The same tokens every time."""
    return torch.Generator().manual_seed(0)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("slice", run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
