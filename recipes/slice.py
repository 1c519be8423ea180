# SPDX-License-Identifier: Apache-2.0
"""Cut a smaller model out of a checkpoint; its adapter is cut alongside, or folded in. Towers are kept or left out.

Needs no torch, unless a run is cut with its optimizer, an adapter is merged, or the result is to be checked.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.checkpoint.directory import check_room, check_target, whole_directory
from model.checkpoint.names import TOKEN_TABLE, unused
from model.checkpoint.reader import Checkpoint
from model.checkpoint.shapes import model_shapes
from model.checkpoint.writer import SHARD_BYTES
from model.config import CONFIG_FILE, ModelConfig
from model.errors import CheckpointError, ConfigError
from model.processor.trimming import Trimming
from model.slicing.adapter import CutAdapter, prepare_adapter
from model.slicing.advice import advice
from model.slicing.checkpoint import Cut, prepare_slice, refuse_within, slice_checkpoint
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.dead_kv import DeadKV
from model.slicing.runtimes import preflight
from model.slicing.spec import SliceConfig
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from recipes.locate import find_checkpoint, is_on_the_hub
from recipes.output import check_new_directory
from recipes.program import start
from recipes.progress import progress_bar
from recipes.sizes import find_slice, resolve_slice, with_towers
from recipes.vocabulary import VocabularyConfig, chosen_vocabulary

NOT_COMPUTED = "F16"  # a dtype that checkpoints can be cut in, but no model be built
ADAPTER = "adapter"  # where a sliced adapter goes, inside the sliced checkpoint


@dataclass(kw_only=True, slots=True)
class SliceRecipe:
    """Cut a smaller model out of a checkpoint; an adapter is cut alongside, or merged in first.

    Towers for images and sound are kept whole, or left out, as in modalities=[text,vision].
    """

    checkpoint: str  # directory or hub name of published weights
    output: Path  # new directory; a sliced adapter is put in its folder 'adapter', the base of a sliced run in 'base'
    slice: SliceConfig
    modalities: list[Modality] | None = None  # towers to keep, beside text; null = all there are
    skip_audio_layers: list[int] = field(default_factory=list)  # layers of the audio tower to leave out
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    run: Path | None = None  # directory of a stopped run that began from checkpoint, to go on with in the smaller size
    adapter_path: Path | None = None  # directory of a trained adapter
    merge: bool = False  # fold the adapter into the weights instead of cutting it too
    dead_kv: DeadKV = DeadKV.keep  # keys and values nothing computes with: keep the parent's, drop, or write zeros
    max_shard_bytes: float = SHARD_BYTES  # of a weight file; a larger tensor gets a file of its own
    overwrite: bool = False  # replace the checkpoint that is at output
    check: bool = False  # afterwards compare parent and result on the same tokens; loads both

    def __post_init__(self) -> None:
        if not float(self.max_shard_bytes).is_integer():
            raise ConfigError(
                f"max_shard_bytes is {self.max_shard_bytes}; it must be a whole number of bytes, as in"
                " max_shard_bytes=5e9"
            )

    @property
    def shard_bytes(self) -> int:
        """Size of a weight file."""
        return int(self.max_shard_bytes)


def run(recipe: SliceRecipe) -> None:
    """Slice, and say what came out."""
    check_new_directory(recipe.output, overwrite=recipe.overwrite)
    if recipe.merge and recipe.adapter_path is None:
        raise ConfigError("slice: merge=true needs an adapter to merge; give adapter_path=DIRECTORY")
    if recipe.run is not None:
        refuse_beside_run(recipe)
    find_slice(recipe.slice)  # what is not said, or has no row, is told before a checkpoint is looked for
    source = Checkpoint.open(find_checkpoint(recipe.checkpoint))
    # Told at once: counting the tokens of a corpus, and comparing bytes, may take minutes.
    refuse_within(source.path, recipe.output)
    if recipe.run is None:
        check_target(recipe.output, overwrite=recipe.overwrite, marker=CONFIG_FILE)
    sub, trimming = resolve(recipe, source)
    if recipe.run is not None:
        go_on = slice_and_go_on(recipe.run, source, sub, recipe)
        print(f"{sub.name}: {describe(source.config, sub)}: {recipe.output}")
        print(f"it goes on by the command that began it, with {shlex.join(go_on)}")
        tell(advice(sub.spec, source.config.text))
        return
    cut, cut_adapter = prepare(recipe, source, sub, trimming)
    # With all that belongs to it, and checked, or not there.
    with whole_directory(recipe.output, overwrite=recipe.overwrite, marker=CONFIG_FILE) as directory:
        if cut_adapter is not None and recipe.merge:
            write_merged(cut, cut_adapter, directory, recipe)
        else:
            write(cut, directory, sub.name)
            if cut_adapter is not None:
                (directory / ADAPTER).mkdir()
                cut_adapter.write(directory / ADAPTER)
        if recipe.check:
            # Imported late: without a check, slicing waits for no model to compute with.
            from recipes.slice_check import check

            beside = None if recipe.merge else directory / ADAPTER
            check(source, sub, directory, adapter=recipe.adapter_path, cut_adapter=beside, output=recipe.output)
    print(f"{sub.name}: {describe(source.config, sub)}: {recipe.output}")
    tell([*advice(sub.spec, source.config.text), *who_cannot_load(sub, source, recipe.dead_kv)])


def refuse_beside_run(recipe: SliceRecipe) -> None:
    """Raise ConfigError for what a run cannot be sliced together with."""
    if recipe.adapter_path is not None:
        raise ConfigError("slice: both run and adapter_path are given; a run's own adapter is cut with it, so give one")
    if not recipe.vocabulary.is_whole:
        raise ConfigError(
            "slice: both run and vocabulary are given, but the rows of a run are known by their tokens' numbers; leave"
            " vocabulary out, and trim what is trained when the run is done"
        )


def resolve(recipe: SliceRecipe, source: Checkpoint) -> tuple[SubModel, Trimming | None]:
    """The part of the checkpoint that the recipe asks for, checked against it; its tokenizer, if that is trimmed."""
    config = source.config
    spec = resolve_slice(recipe.slice, config.text)
    sub = with_towers(spec, config, modalities=recipe.modalities, skip_audio_layers=recipe.skip_audio_layers)
    sub.check(config)
    if recipe.vocabulary.is_whole:
        return sub, None
    trimming = Trimming.read(source.path)
    wanted = config if sub.modalities is None else config.only(sub.modalities)
    vocabulary = chosen_vocabulary(recipe.vocabulary, source.path, wanted, trimming=trimming)
    sub = replace(sub, vocabulary=vocabulary)
    sub.check(config)
    return sub, trimming


def who_cannot_load(sub: SubModel, source: Checkpoint, dead_kv: DeadKV) -> Iterator[str]:
    """Which runtimes load no such sub-model, and which of them would with keys and values that nothing reads."""
    has_dead_kv = {
        DeadKV.keep: all(name in source.tensors for name in unused(source.config.text)),
        DeadKV.drop: False,
        DeadKV.zeros: True,
    }[dead_kv]
    as_it_is, with_dead_kv = (
        preflight(
            sub.spec,
            source.config,
            modalities=sub.modalities,
            has_dead_kv=has_it,
            vocabulary_trimmed=sub.vocabulary is not None,
            audio_trimmed=sub.audio_layers is not None,
        )
        for has_it in (has_dead_kv, True)
    )
    never = [verdict.runtime.value for verdict in with_dead_kv if not verdict.runs]
    not_yet = [verdict.runtime.value for verdict in as_it_is if not verdict.runs and verdict.runtime.value not in never]
    if never:
        yield f"does not load in {', '.join(never)}; matslice plan says why"
    if not_yet:
        yield f"{', '.join(not_yet)} load it only with dead_kv=zeros: they want keys and values that nothing reads"


def tell(notes: Iterable[str]) -> None:
    """Say on standard error what is unusual about a sub-model; nothing of that is wrong."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def prepare(
    recipe: SliceRecipe, source: Checkpoint, sub: SubModel, trimming: Trimming | None
) -> tuple[Cut, CutAdapter | None]:
    """Look at all that is to be cut, before there is anything at the output; errors as of what writes it."""
    cut = prepare_slice(
        source,
        recipe.output,
        sub,
        dead_kv=recipe.dead_kv,
        max_shard_bytes=recipe.shard_bytes,
        overwrite=recipe.overwrite,
        trimming=trimming,
    )
    if is_on_the_hub(recipe.checkpoint):
        cut = cut.of_parent_named(recipe.checkpoint)
    if recipe.adapter_path is None:
        return cut, None
    cut_adapter = prepare_adapter(recipe.adapter_path, sub, source.config)
    refuse_within(recipe.adapter_path, recipe.output, whose="the adapter's")
    if recipe.merge:
        if source.dtype(TOKEN_TABLE) == NOT_COMPUTED:
            raise CheckpointError(
                f"{source.path}: stored in float16, in which Gemma 3n's hidden states overflow, so nothing is merged in"
                " it; cut the adapter beside it instead (merge=false), or store the checkpoint in bfloat16"
            )
        from model.adapter.lora import check_adapter  # late: of all that slicing does, merging alone computes

        check_adapter(source.config, recipe.adapter_path)
        check_room(recipe.output, 2 * cut.nbytes, marker=CONFIG_FILE)  # before and after it is merged
    return cut, cut_adapter


def write(cut: Cut, directory: Path, name: str) -> None:
    """Write the sub-model's checkpoint under a progress bar."""
    with progress_bar(f"slicing {name}") as progress:
        cut.write(directory, progress)


def write_merged(cut: Cut, cut_adapter: CutAdapter, directory: Path, recipe: SliceRecipe) -> None:
    """The sub-model of the merged model. Slicing first gives the same weights and needs the smaller memory."""
    from recipes.merge import merge_into

    aside = directory / "unmerged"
    for part in ("model", ADAPTER):
        (aside / part).mkdir(parents=True)
    write(cut, aside / "model", str(cut.lineage["spec"]["name"]))
    cut_adapter.write(aside / ADAPTER)
    merge_into(aside / "model", aside / ADAPTER, aside / "merged", max_shard_bytes=recipe.shard_bytes)
    for path in sorted((aside / "merged").iterdir()):
        path.rename(directory / path.name)
    shutil.rmtree(aside)


def describe(parent: ModelConfig, sub: SubModel) -> str:
    """How large the sub-model ``sub`` is, and what was left out of its parent's towers."""
    wanted = parent if sub.modalities is None else parent.only(sub.modalities)
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


def slice_under_bar(source: Checkpoint, target: Path, sub: SubModel, recipe: SliceRecipe) -> None:
    """Slice one of the checkpoints of a run under a progress bar."""
    with progress_bar(f"slicing {sub.name}") as progress:
        slice_checkpoint(
            source,
            target,
            sub,
            dead_kv=recipe.dead_kv,
            max_shard_bytes=recipe.shard_bytes,
            progress=progress,
        )


def slice_and_go_on(stopped: Path, source: Checkpoint, sub: SubModel, recipe: SliceRecipe) -> list[str]:
    """A stopped run, of which the smaller model is trained on; gives what is said to do so."""
    from recipes.slice_run import slice_run  # late: an optimizer's state is read by torch

    return slice_run(
        stopped,
        source,
        sub,
        recipe.output,
        write=lambda parent, target, part: slice_under_bar(parent, target, part, recipe),
        overwrite=recipe.overwrite,
        check=recipe.check,
    )


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("slice", SliceRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
