# SPDX-License-Identifier: Apache-2.0
"""Tell what a sub-model costs, or which sub-model a budget allows: a config is read, no weights are, and no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from model.config import CONFIG_FILE, ModelConfig, TextConfig
from model.errors import ConfigError, SliceError
from model.slicing.advice import advice
from model.slicing.config import slice_config
from model.slicing.count import Layout, count_effective_parameters, text_shapes
from model.slicing.plan import Plan, StoredAs
from model.slicing.propose import Budget, propose
from model.slicing.runtimes import Runtime, nearest, never_met, preflight
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import published_slices, write_slices
from model.slicing.vocabulary import Vocabulary
from model.tower_config import Modality
from recipes.locate import find_checkpoint
from recipes.output import check_new_file
from recipes.plan_report import Report, show, slice_file
from recipes.program import start
from recipes.schema import choices
from recipes.shape import ShapeConfig
from recipes.sizes import resolve_slice, with_towers

USUAL_CONTEXT_TOKENS = 8192
TOKENIZER_FILE = "tokenizer.json"  # as in model.processor.tokenizer, which takes long to import


@dataclass(kw_only=True, slots=True)
class PlanRecipe:
    """Tell what a sub-model costs: parameters, bytes, keys and values, operations, and which runtimes load it.

    The parent is model=e4b, or model=DIRECTORY of a checkpoint, of which config.json alone is read. With
    max_effective or max_bytes, the part of slice= is proposed that comes closest under it: layers get their
    own width or half of it, as trained, in the order of Google's table. It is printed as a file for conf/slice.
    """

    slice: SliceConfig
    model: ShapeConfig | None = None  # a file of conf/model; or a directory, which is taken for checkpoint
    checkpoint: str | None = None  # directory or hub name of published weights
    modalities: list[Modality] | None = None  # towers to keep, beside text; null = all there are
    skip_audio_layers: list[int] = field(default_factory=list)  # layers of the audio tower to leave out
    vocabulary_tokens: int | None = None  # how many of the text's tokens to keep; null = all
    context: int | None = None  # tokens; null = 8192, or as many as the model was made for
    dtype: StoredAs = StoredAs.bf16  # of the weights in max_bytes
    cache_dtype: StoredAs | None = None  # of keys and values in max_bytes; null = bf16, or fp32 with dtype=fp32
    max_effective: float | None = None  # parameters beside token tables, as in Google's E2B; 3.0e9 is 3 billion
    max_bytes: float | None = None  # of weights, towers included, and keys and values of context
    runtime: str | None = None  # take the nearest sub-model that this runtime runs
    json: bool = False  # print all of it as JSON instead
    save: Path | None = None  # new file for the sub-model, as in conf/slice
    csv: Path | None = None  # new file for the sub-model, in Google's CSV schema

    def __post_init__(self) -> None:
        for key in ("max_effective", "max_bytes"):
            if (limit := getattr(self, key)) is not None and not 0 < limit < float("inf"):
                raise ConfigError(f"{key} is {limit}; it must be a positive number, as in {key}=3.0e9")


def run(recipe: PlanRecipe) -> None:
    """Plan, and say it; write what is asked for."""
    for key in ("save", "csv"):
        if (path := getattr(recipe, key)) is not None:
            check_new_file(path, key=key)
    parent = parent_of(recipe)
    report = plan(recipe, parent)
    # Before anything is said: whoever reads our output may have seen enough of it, and ends us.
    if recipe.save is not None:
        recipe.save.parent.mkdir(parents=True, exist_ok=True)
        recipe.save.write_text(slice_file(report), encoding="utf-8")
    if recipe.csv is not None:
        spec = report.plan.sub.spec
        recipe.csv.parent.mkdir(parents=True, exist_ok=True)
        write_slices(recipe.csv, {spec.name: spec}, parent.text)
    if recipe.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        show(report)


def plan(recipe: PlanRecipe, parent: ModelConfig) -> Report:
    """The figures of the sub-model that is asked for, proposed, or the nearest to it that a runtime runs.

    Raises:
        MatsliceError: The slice, the context or the modalities do not fit the parent, no sub-model fits the budget,
            or the runtime runs none.
    """
    around = what_stays(recipe, parent)
    kept = slice_config(parent, around)
    budget = budget_of(recipe, kept)
    spec = resolve_slice(recipe.slice, kept.text)
    if budget.is_limited:
        spec = spec.then(propose(slice_config(kept, SubModel(spec)), budget))
    asked = spec
    if recipe.runtime is not None:
        spec = for_runtime(spec, kept, Runtime.named(recipe.runtime))
    sub = replace(around, spec=spec)
    verdicts = preflight(
        spec, parent, modalities=sub.modalities,
        vocabulary_trimmed=sub.vocabulary is not None, audio_trimmed=sub.audio_layers is not None,
    )  # fmt: skip
    for verdict in verdicts:
        if recipe.runtime is not None and verdict.runtime is Runtime.named(recipe.runtime) and not verdict.runs:
            raise SliceError(f"runtime {verdict.runtime}: it runs no such sub-model: {'; '.join(verdict.reasons)}")
    return Report(
        plan=Plan.of(parent, sub, context_tokens=budget.context_tokens),
        parent=parent, budget=budget, asked=asked, verdicts=verdicts,
        notes=[*advice(spec, parent.text), *notes_on(recipe, spec, parent)],
        checkpoint=recipe.checkpoint, saved=recipe.save,
    )  # fmt: skip


def notes_on(recipe: PlanRecipe, spec: SliceSpec, parent: ModelConfig) -> Iterator[str]:
    """What is to be known of a plan beside what was trained."""
    place = None if recipe.checkpoint is None else Path(recipe.checkpoint).expanduser()
    if recipe.vocabulary_tokens is not None and not (place and (place / TOKENIZER_FILE).is_file()):
        yield (
            f"vocabulary_tokens={recipe.vocabulary_tokens} is before special and byte tokens, which a slice keeps in"
            " any case: there is no tokenizer.json here to count them"
        )
    if recipe.max_effective is not None and (names := of_the_same_size(spec, parent.text)):
        yield f"among Google's slices, whose accuracy was measured, {' and '.join(names)} have the same effective size"


def of_the_same_size(spec: SliceSpec, config: TextConfig) -> list[str]:
    """Google's other slices of as many effective parameters; none if ``spec`` is one of them."""
    shapes = text_shapes(config, Layout.published).items()
    effective, found = count_effective_parameters(shapes, SubModel(spec), config), list[str]()
    for written in published_slices().values():
        try:
            other = SliceSpec.resolve(written, config)
        except SliceError:  # a slice of E4B is no part of this parent
            continue
        if replace(other, name=spec.name) == spec:
            return []
        if count_effective_parameters(shapes, SubModel(other), config) == effective:
            found.append(other.name)
    return found


def what_stays(recipe: PlanRecipe, parent: ModelConfig) -> SubModel:
    """All layers of the text decoder, and what is to stay around them."""
    spec = SliceSpec.full(parent.text)
    around = with_towers(spec, parent, modalities=recipe.modalities, skip_audio_layers=recipe.skip_audio_layers)
    if recipe.vocabulary_tokens is None:
        return around
    return replace(around, vocabulary=vocabulary_of(recipe.vocabulary_tokens, slice_config(parent, around)))


def vocabulary_of(tokens: int, config: ModelConfig) -> Vocabulary:
    """A vocabulary of so many of the text's tokens; which ones they are makes no difference to a plan."""
    needed, everything = Vocabulary.of((), config), len(Vocabulary.full(config))
    if not len(needed) <= tokens <= everything:
        raise ConfigError(
            f"vocabulary_tokens is {tokens}; it must be {len(needed)} (those that the config names) to {everything}"
        )
    others = (token for token in range(everything) if token not in needed)
    return Vocabulary.of(islice(others, tokens - len(needed)), config)


def for_runtime(spec: SliceSpec, config: ModelConfig, runtime: Runtime) -> SliceSpec:
    """The nearest to ``spec`` that the runtime runs.

    Raises:
        SliceError: It runs none.
    """
    found = nearest(spec, config, runtime.name)
    if found is None:
        raise SliceError(
            f"runtime {runtime}: it runs no sub-model of this parent with what is kept of it:"
            f" {'; '.join(never_met(spec, config, runtime.name))}; or leave runtime out"
        )
    return found if found == spec else replace(found, name=f"{spec.name}_{runtime.name}")


def budget_of(recipe: PlanRecipe, config: ModelConfig) -> Budget:
    """The limits that a recipe sets, if any, and how bytes are counted in them."""
    context = recipe.context
    if context is None:
        context = min(USUAL_CONTEXT_TOKENS, config.text.max_position_embeddings)
    return Budget(
        max_effective=None if recipe.max_effective is None else int(recipe.max_effective),
        max_bytes=None if recipe.max_bytes is None else int(recipe.max_bytes),
        context_tokens=context,
        dtype=recipe.dtype,
        cache_dtype=recipe.cache_dtype,
    )


def parent_of(recipe: PlanRecipe) -> ModelConfig:
    """The parent's config.

    Raises:
        MatsliceError: None is given, or two are; or there is no config there, or none of Gemma 3n.
    """
    if (recipe.model is None) == (recipe.checkpoint is None):
        found = "neither is" if recipe.model is None else "both are"
        raise ConfigError(
            f"plan: the parent is one model or one checkpoint, but {found} given; say"
            f" model={'|'.join(choices('model'))}|DIRECTORY"
        )
    if recipe.model is not None:
        return recipe.model.to_model_config()
    assert recipe.checkpoint is not None
    return ModelConfig.read(find_checkpoint(recipe.checkpoint, files=[CONFIG_FILE]))


def as_checkpoint(word: str) -> str:
    """``model=DIRECTORY`` as ``checkpoint=DIRECTORY``: to Hydra, ``model=`` chooses a file of conf and nothing else."""
    key, _, value = word.partition("=")
    if key != "model":
        return word
    names_shape = value in choices("model") and not Path(value, CONFIG_FILE).is_file()
    is_place = "/" in value or (Path(value).is_dir() and not names_shape)
    return f"checkpoint={value}" if is_place else word


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("plan", PlanRecipe, run, [as_checkpoint(word) for word in arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
