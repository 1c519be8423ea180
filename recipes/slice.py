# SPDX-License-Identifier: Apache-2.0
"""Cut a smaller model out of a checkpoint; its adapter is cut alongside, or folded in. Towers are kept or left out."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.directory import whole_directory
from model.checkpoint.reader import Checkpoint
from model.checkpoint.shapes import model_shapes
from model.config import CONFIG_FILE, ModelConfig
from model.errors import ConfigError
from model.slicing.adapter import slice_adapter
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from recipes.locate import find_checkpoint
from recipes.output import check_new_directory
from recipes.program import start

ADAPTER = "adapter"  # where a sliced adapter goes, inside the sliced checkpoint


@dataclass(kw_only=True, slots=True)
class SliceRecipe:
    """Cut a smaller model out of a checkpoint; an adapter is cut alongside, or merged in first.

    Towers for images and sound are kept whole, or left out, as in modalities=[text,vision].
    """

    checkpoint: str  # directory or hub name of published weights
    output: Path  # new directory; a sliced adapter is put in its folder 'adapter'
    slice: SliceConfig
    modalities: list[Modality] | None = None  # towers to keep, beside text; null = all there are
    adapter_path: Path | None = None  # directory of a trained adapter
    merge: bool = False  # fold the adapter into the weights instead of cutting it too
    check: bool = False  # afterwards compare parent and result on the same tokens; loads both


def run(recipe: SliceRecipe) -> None:
    """Slice, and say what came out."""
    check_new_directory(recipe.output)
    if recipe.merge and recipe.adapter_path is None:
        raise ConfigError("slice: merge=true needs an adapter to merge; give adapter_path=DIRECTORY")
    source = Checkpoint.open(find_checkpoint(recipe.checkpoint))
    spec = SliceSpec.resolve(recipe.slice, source.config.text)
    wanted = source.config if recipe.modalities is None else source.config.only(recipe.modalities)
    sub = SubModel(spec, wanted.modalities)
    # With all that belongs to it, and checked, or not there.
    with whole_directory(recipe.output, marker=CONFIG_FILE) as directory:
        if recipe.adapter_path is None:
            slice_checkpoint(source, directory, sub)
        elif recipe.merge:
            slice_and_merge(source, recipe.adapter_path, directory, sub)
        else:
            slice_both(source, recipe.adapter_path, directory, sub)
        if recipe.check:
            # Imported late: without a check, slicing waits for no model to compute with.
            from recipes.slice_check import check

            cut_adapter = None if recipe.merge else directory / ADAPTER
            check(
                source, spec, directory, adapter=recipe.adapter_path, cut_adapter=cut_adapter, output=recipe.output
            )  # fmt: skip
    print(f"{spec.name}: {describe(source.config, wanted, sub)}: {recipe.output}")


def describe(parent: ModelConfig, wanted: ModelConfig, sub: SubModel) -> str:
    """How large the sub-model ``sub`` is, and what was left out of its parent's towers."""
    text = wanted.text
    shapes = text_shapes(text, Layout.used).items()
    parameters, effective = count_parameters(shapes, sub, text), count_effective_parameters(shapes, sub, text)
    told = f"{parameters:,} text parameters, {effective:,} of them effective"
    if wanted.is_multimodal:
        total = count_parameters(model_shapes(wanted, Layout.used).items(), sub, text)
        told += f"; {total - parameters:,} for {' and '.join(wanted.modalities[1:])}, {total:,} in all"
    if left_out := [modality for modality in parent.modalities if modality not in wanted.modalities]:
        told += f"; left out: {', '.join(left_out)}"
    return told


def slice_both(source: Checkpoint, adapter: Path, output: Path, sub: SubModel) -> None:
    """The checkpoint into ``output``, the adapter into a folder in it: cut first, being what may be refused."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as aside:
        slice_adapter(adapter, Path(aside, ADAPTER), sub, source.config)
        slice_checkpoint(source, output, sub)
        Path(aside, ADAPTER).rename(output / ADAPTER)


def slice_and_merge(source: Checkpoint, adapter: Path, output: Path, sub: SubModel) -> None:
    """The sub-model of the merged model. Slicing first gives the same weights and needs the smaller memory."""
    from recipes.merge import merge_into  # late: of all that slicing does, this alone computes

    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as aside:
        slice_adapter(adapter, Path(aside, ADAPTER), sub, source.config)
        slice_checkpoint(source, Path(aside, "model"), sub)
        merge_into(Path(aside, "model"), Path(aside, ADAPTER), output)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("slice", SliceRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
