# SPDX-License-Identifier: Apache-2.0
"""Cut a smaller model out of a checkpoint; its adapter is cut alongside, or folded in. Towers are kept or left out."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.adapter.lora import PeftModel, load_adapter, merge
from model.checkpoint.directory import whole_directory
from model.checkpoint.load import load
from model.checkpoint.names import TOKEN_TABLE
from model.checkpoint.reader import Checkpoint
from model.checkpoint.shapes import model_shapes
from model.config import CONFIG_FILE, ModelConfig
from model.errors import CheckpointError, ConfigError
from model.gemma3n import Gemma3n
from model.inputs import Audio, Images, Inputs
from model.slicing.adapter import slice_adapter
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceSpec
from model.tower_config import MediaTokens, Modality
from model.vision.stages import ARCHITECTURES
from recipes.build import build_adapted, find_checkpoint
from recipes.merge import merge_into
from recipes.output import check_new_directory
from recipes.program import start
from recipes.schema import SliceRecipe

ADAPTER = "adapter"  # where a sliced adapter goes, inside the sliced checkpoint
CHECKED_TOKENS, CHECKED_FRAMES = 64, 100
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
    wanted = source.config if recipe.modalities is None else source.config.only(recipe.modalities)
    # With all that belongs to it, and checked, or not there.
    with whole_directory(recipe.output, marker=CONFIG_FILE) as directory:
        if recipe.adapter_path is None:
            slice_checkpoint(source, directory, spec, modalities=wanted.modalities)
        elif recipe.merge:
            slice_and_merge(source, recipe.adapter_path, directory, spec, wanted.modalities)
        else:
            slice_both(source, recipe.adapter_path, directory, spec, wanted.modalities)
        if recipe.check:
            check(source, recipe, spec, directory)
    print(f"{spec.name}: {describe(source.config, wanted, spec)}: {recipe.output}")


def describe(parent: ModelConfig, wanted: ModelConfig, spec: SliceSpec) -> str:
    """How large the sub-model ``spec`` is, and what was left out of its parent's towers."""
    text = wanted.text
    shapes = text_shapes(text, Layout.used).items()
    parameters, effective = count_parameters(shapes, spec, text), count_effective_parameters(shapes, spec, text)
    told = f"{parameters:,} text parameters, {effective:,} of them effective"
    if wanted.is_multimodal:
        total = count_parameters(model_shapes(wanted, Layout.used).items(), spec, text)
        told += f"; {total - parameters:,} for {' and '.join(wanted.modalities[1:])}, {total:,} in all"
    if left_out := [modality for modality in parent.modalities if modality not in wanted.modalities]:
        told += f"; left out: {', '.join(left_out)}"
    return told


def slice_both(
    source: Checkpoint, adapter: Path, output: Path, spec: SliceSpec, modalities: Sequence[Modality]
) -> None:
    """The checkpoint into ``output``, the adapter into a folder in it: cut first, being what may be refused."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as aside:
        slice_adapter(adapter, Path(aside, ADAPTER), spec, source.config.text, modalities=modalities)
        slice_checkpoint(source, output, spec, modalities=modalities)
        Path(aside, ADAPTER).rename(output / ADAPTER)


def slice_and_merge(
    source: Checkpoint, adapter: Path, output: Path, spec: SliceSpec, modalities: Sequence[Modality]
) -> None:
    """The sub-model of the merged model. Slicing first gives the same weights and needs the smaller memory."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as aside:
        slice_adapter(adapter, Path(aside, ADAPTER), spec, source.config.text, modalities=modalities)
        slice_checkpoint(source, Path(aside, "model"), spec, modalities=modalities)
        merge_into(Path(aside, "model"), Path(aside, ADAPTER), output)


@torch.no_grad()
def check(source: Checkpoint, recipe: SliceRecipe, spec: SliceSpec, written: Path) -> None:
    """Run the parent under ``spec`` and what was ``written`` on the same tokens, and an item of each medium.

    Raises:
        CheckpointError: They do not agree.
    """
    stored = source.tensor(TOKEN_TABLE).dtype
    if recipe.merge and recipe.adapter_path is not None:
        whole = merged_as_stored(source, recipe.adapter_path)
    else:
        whole = adapted(source.path, recipe.adapter_path)
    inputs = checked_inputs(ModelConfig.read(written))
    expected = whole(inputs, spec=spec).logits
    del whole
    small = adapted(written, None if recipe.adapter_path is None or recipe.merge else written / ADAPTER)
    error = (small(inputs).logits - expected).abs().max().item() / expected.abs().max().item()
    allowed = MERGED_TOLERANCE if recipe.merge and stored is not torch.float32 else TOLERANCE
    if not error <= allowed:
        raise CheckpointError(
            f"{recipe.output}: the slice differs from its parent under the same spec by {error:.1e} of the largest"
            f" score (allowed {allowed:.0e}), so it was not kept"
        )
    print(f"checked: differs from its parent under the same spec by {error:.1e} of the largest score")


def checked_inputs(config: ModelConfig) -> Inputs:
    """Random tokens, behind a random picture and random sound if the model takes them."""
    generator = seeded()
    ids = [torch.randint(config.text.vocab_size_per_layer_input, (CHECKED_TOKENS,), generator=generator)]
    images = audio = None
    if config.vision is not None:
        side = ARCHITECTURES[config.vision.architecture].picture_px
        images = Images(pixels=torch.rand(1, 3, side, side, generator=generator))
        ids.insert(0, run_of(config.vision.tokens))
    if config.audio is not None:
        audio = Audio.of([torch.randn(CHECKED_FRAMES, config.audio.input_feat_size, generator=generator)])
        ids.insert(0, run_of(config.audio.tokens))
    return dataclasses.replace(Inputs.of(torch.cat(ids)[None]), images=images, audio=audio)


def run_of(tokens: MediaTokens) -> Tensor:
    """The ids of one item of a medium."""
    return torch.tensor([tokens.begin_id, *[tokens.placeholder_id] * tokens.per_item, tokens.end_id])


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
