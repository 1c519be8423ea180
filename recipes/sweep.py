# SPDX-License-Identifier: Apache-2.0
"""Measure many sub-models of one checkpoint on several tasks: one model in memory, what they have in common once.

Results are in ``output``: rows.jsonl (a line per sub-model and task), items/ (what was found of every item),
report.html to look at, and the same as pictures and tables. A sweep that was stopped goes on with resume=true.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from model.adapter.lora import base_of
from model.config import ModelConfig
from model.errors import ConfigError
from model.generation.generate import ids_of_media
from model.layers.embedding import TablePlacement
from model.processor.audio import LongAudio
from model.processor.processor import Processor
from model.slicing.official import official
from model.slicing.plan import StoredAs
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from recipes.build import (
    build_adapted,
    build_cache,
    build_processor,
    config_record,
    find_device,
    fingerprint_of,
    media_record,
    towers_of_adapter,
)  # fmt: skip
from recipes.locate import find_checkpoint
from recipes.output import check_directory
from recipes.program import start
from recipes.sweep_names import find_slices, find_tasks
from trainer.config import Device, Precision, WandbMode
from trainer.data.collate import Collator
from trainer.evaluation.engine import Engine
from trainer.evaluation.statistics import StatisticsConfig
from trainer.evaluation.task import Task
from trainer.evaluation.task_building import build_tasks
from trainer.evaluation.task_config import LIBRARIES
from trainer.harness.config import HarnessConfig
from trainer.harness.task import HarnessTask, harness_tasks
from trainer.search.space import SpaceConfig
from trainer.soft_tokens import SharedTowers
from trainer.sweep.identity import Identity
from trainer.sweep.page.page import PAGE_FILE, Origin, write_report
from trainer.sweep.publish import check_publishing, publish
from trainer.sweep.row import Row, told_alike
from trainer.sweep.run import About, check, compare, sweep
from trainer.sweep.run import Progress as Step
from trainer.sweep.store import Store

PACKAGES = ("matslice", "torch", "tokenizers", "numpy")


@dataclass(kw_only=True, slots=True)
class SweepRecipe:
    """Measure many sub-models of one checkpoint on several tasks; the model is loaded once."""

    checkpoint: str  # directory or hub name of published weights
    tasks: Any  # a word or a list: names of conf/task, YAML files like those, lm_eval:NAME
    output: Path  # directory of the results
    slices: Any = "official"  # a word or a list: official, grid, names of conf/slice, YAML files like those, CSV tables
    space: SpaceConfig = field(default_factory=SpaceConfig)  # what slices=grid is all of
    resume: bool = False  # go on with what is there; sub-models may be added
    compare: bool = True  # with the whole model: agreement, divergence, differences with their intervals
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    lm_eval: HarnessConfig = field(default_factory=HarnessConfig)  # how tasks of lm-evaluation-harness are asked
    adapter_path: Path | None = None  # directory of a trained adapter
    merge: bool = True  # fold the adapter into the weights first, as slices that are shipped have it; takes less time
    modalities: list[Modality] | None = None  # towers to load if needed, beside text; null = all
    long_audio: LongAudio = LongAudio.refuse  # sound of more than 30 s: refuse, truncate, or chunk it into several
    shared_gib: float = 1.0  # about how much of what sub-models have in common waits in memory; less takes longer
    stored_as: StoredAs = StoredAs.bf16  # how weights are stored, for the bytes that rows tell
    mmlu_task: str | None = None  # task whose accuracy goes into the accuracy column of Google's table schema
    per_layer_table: TablePlacement = TablePlacement.device  # or host, mmap: rows come as needed
    soft_token_cache: Path | None = None  # directory that keeps what the towers make of images and sound
    precision: Precision = Precision.fp32
    device: Device = Device.auto
    threads: int | None = None  # of the processor; null leaves it to torch
    wandb: WandbMode = WandbMode.off  # off, offline or online: a table and plots there
    wandb_project: str = "matslice"
    tensorboard: bool = False  # figures for TensorBoard, in output

    def __post_init__(self) -> None:
        if not (math.isfinite(self.shared_gib) and self.shared_gib >= 0):
            raise ConfigError(f"shared_gib is {self.shared_gib}; it is an amount of memory, 0 or more")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; it must be at least 1, or null")


@dataclass(frozen=True)
class Parent:
    """The checkpoint, looked at but not loaded.

    Args:
        config: Without the towers that are not wanted.
        adapted: The towers that the adapter changes, if there is one.
    """

    checkpoint: Path
    config: ModelConfig
    processor: Processor
    adapted: frozenset[Modality] = frozenset()


@dataclass(frozen=True)
class Prepared:
    """All of a sweep but the model: found, read and checked before it is loaded.

    Args:
        specs: The sub-models, the whole model among them where all are compared with it.
        reference: What all are compared with, if they are: the whole model.
        settings: What else decides the figures, as JSON values.
        program: The command whose sweep it is.
    """

    parent: Parent
    tasks: list[Task]
    specs: list[SliceSpec]
    reference: SliceSpec | None
    settings: dict[str, Any] = field(default_factory=dict)
    program: str = "sweep"


def run(recipe: SweepRecipe) -> None:
    """Measure what is not measured yet; print a table, and say where the report is."""
    rows = measure(recipe)
    Console(width=None if sys.stdout.isatty() else 200).print(table(rows))
    print(f"{recipe.output / PAGE_FILE}: to look at; beside it the same as pictures and tables")


def measure(recipe: SweepRecipe) -> list[Row]:
    """The rows of all sub-models on all tasks, in the order they are written in; files as the module says.

    Raises:
        MatsliceError: A word, a file, the checkpoint or what is in ``output`` cannot be used.
    """
    check_directory(recipe.output)
    check_publishing(wandb=recipe.wandb, tensorboard=recipe.tensorboard)
    prepared = prepare(recipe)
    return measured(recipe, prepared, lambda: build_engine(recipe, prepared.parent, prepared.tasks, prepared.reference))


def measured(recipe: SweepRecipe, prepared: Prepared, engine: Callable[[], Engine]) -> list[Row]:
    """As ``measure``, of what is prepared; an engine is made only where something is left to measure."""
    config = prepared.parent.config
    about = About(
        config=config, stored_as=recipe.stored_as,
        officials=official(config.text, tuned=recipe.adapter_path is not None), versions=versions_of(prepared.tasks),
    )  # fmt: skip
    check(config, prepared.tasks, prepared.specs)
    store = Store(recipe.output, identity_of(recipe, prepared), prepared.specs, resume=recipe.resume)
    try:
        wanted = {(spec.name, task.name) for task in prepared.tasks for spec in prepared.specs}
        if not wanted <= store.rows.keys():
            with progress_bar() as show:
                sweep(engine(), prepared.tasks, prepared.specs, store, about, show)
        # Those of sub-models that only an earlier command named belong to the sweep as well.
        place = {task.name: number for number, task in enumerate(prepared.tasks)}
        rows = sorted(store.rows.values(), key=lambda row: place[row.task])
        report(recipe, prepared, store, rows)
        publish(rows, recipe.output, wandb=recipe.wandb, project=recipe.wandb_project, tensorboard=recipe.tensorboard)
    finally:
        store.close()
    return rows


def find_parent(recipe: SweepRecipe) -> Parent:
    """The checkpoint that is swept."""
    checkpoint = find_checkpoint(recipe.checkpoint)
    config = ModelConfig.read(checkpoint)
    if recipe.modalities is not None:
        config = config.only(recipe.modalities)
    adapted = towers_of_adapter(
        config, recipe.adapter_path, merge=recipe.merge, per_layer_table=recipe.per_layer_table
    )  # fmt: skip
    processor = build_processor(None, checkpoint, config, long_audio=recipe.long_audio, long_audio_key="long_audio")
    return Parent(checkpoint, config, processor, adapted)


def prepare(recipe: SweepRecipe) -> Prepared:
    """Everything that can be wrong is found here."""
    written, theirs = find_tasks(recipe.tasks)
    parent = find_parent(recipe)
    text = parent.config.text
    specs = find_slices(recipe.slices, recipe.space, text)
    reference = None
    if recipe.compare:
        reference = SliceSpec.full(text)  # by whatever name it is measured
        if not any(spec.is_full(text) for spec in specs):
            specs = [reference, *specs]
    tasks: list[Task] = []
    if written or not theirs:
        tasks += build_tasks(written, parent.processor, has_reference=recipe.compare)
    tasks += harness_tasks(theirs, recipe.lm_eval, parent.processor, checkpoint=parent.checkpoint)
    fitting = [task.name for task in tasks if any(metric.name == "accuracy" for metric in task.metrics)]
    if recipe.mmlu_task not in (None, *fitting):
        raise ConfigError(
            f"mmlu_task is '{recipe.mmlu_task}', which is no task with an accuracy; "
            + (f"name one of {', '.join(fitting)}, or null" if fitting else "none has one, so leave it out")
        )
    return Prepared(parent, tasks, specs, reference)


def identity_of(recipe: SweepRecipe, prepared: Prepared) -> Identity:
    """What decides the figures."""
    parent = prepared.parent
    return Identity(
        model=fingerprint_of(parent.checkpoint, recipe.adapter_path),
        dtype=dtype_of(recipe.precision),
        reference=prepared.reference,
        statistics=recipe.statistics,
        tasks=prepared.tasks,
        settings={
            "stored_as": recipe.stored_as.value, "merge": recipe.merge and recipe.adapter_path is not None,
            "modalities": sorted(parent.config.modalities), **computed_by(parent, prepared.tasks), **prepared.settings,
        },
        surroundings={"device": find_device(recipe.device).type, **versions_of(prepared.tasks)},
    )  # fmt: skip


def computed_by(parent: Parent, tasks: Sequence[Task]) -> dict[str, Any]:
    """What decides figures beside weights and rows: the model's config, and how media are prepared that tasks have."""
    needed = frozenset[Modality]().union(*(task.modalities for task in tasks))
    return {"config": config_record(parent.config), "media": media_record(parent.processor, needed)}


def versions_of(tasks: Sequence[Task]) -> dict[str, str]:
    """Of what computes the figures, by package; libraries of metrics and of the harness where a task has such."""
    metrics = {metric.name for task in tasks for metric in task.metrics}
    packages = [*PACKAGES, *dict.fromkeys(package for metric, (_, package) in LIBRARIES.items() if metric in metrics)]
    if any(isinstance(task, HarnessTask) for task in tasks):
        packages.append("lm_eval")
    return {name: version(name) for name in packages}


def dtype_of(precision: Precision) -> str:
    """What is computed in, as torch calls it."""
    return str(precision.dtype).removeprefix("torch.")


def build_engine(recipe: SweepRecipe, parent: Parent, tasks: Sequence[Task], reference: SliceSpec | None) -> Engine:
    """The model, with those towers that some task needs."""
    config, device = parent.config, find_device(recipe.device)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    needed = {Modality.text}.union(parent.adapted, *(task.modalities for task in tasks))
    loaded = [modality for modality in config.modalities if modality in needed]
    if idle := [modality for modality in config.modalities if modality not in loaded]:
        print(f"loads {' and '.join(loaded)}; no task needs {' or '.join(idle)}", file=sys.stderr)
    model = build_adapted(
        parent.checkpoint, recipe.adapter_path, dtype=recipe.precision.dtype, device=device, modalities=loaded,
        per_layer_table=recipe.per_layer_table, merge=recipe.merge,
    )  # fmt: skip
    gemma, processor = base_of(model), parent.processor
    cache = build_cache(recipe.soft_token_cache, gemma, processor, device)
    return Engine(
        model=model, tokenizer=processor.tokenizer, collator=Collator(processor.tokenizer.pad_id, processor, cache),
        towers=SharedTowers(gemma, cache), reference=reference, kept_bytes=int(recipe.shared_gib * 2**30),
        unsaid=ids_of_media(config),
    )  # fmt: skip


def report(recipe: SweepRecipe, prepared: Prepared, store: Store, rows: Sequence[Row]) -> None:
    """What is made of the rows: the page with its pictures and tables, and what other programs are told."""
    comparisons = None
    if prepared.reference is not None:
        comparisons = {}
        for task in prepared.tasks:
            # What a stopped sweep has found may be of other sub-models in each task, the whole by another name too.
            specs = [row.spec for row in rows if row.task == task.name]
            whole = next(spec for spec in specs if spec.is_full(prepared.parent.config.text))
            comparisons[task.name] = compare(task, specs, store, parent=whole)
    write_report(
        rows, recipe.output, config=prepared.parent.config.text, comparisons=comparisons, mmlu_task=recipe.mmlu_task,
        origin=Origin(
            title=f"Sub-models of {prepared.parent.checkpoint.name}", parent=recipe.checkpoint,
            command=["matslice", prepared.program, *sys.argv[1:]],
        ),
    )  # fmt: skip


@contextmanager
def progress_bar() -> Iterator[Callable[[Step], None]]:
    """Something to be told how far a sweep is; a bar on a terminal, on standard error."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as shown:
        bars: dict[str, Any] = {}

        def show(step: Step) -> None:
            what = f"{step.task} ({step.task_number} of {step.num_tasks}), {step.num_specs} sub-models"
            if step.task not in bars:
                bars[step.task] = shown.add_task(what, total=step.num_batches)
            shown.update(bars[step.task], completed=step.batches_done)
            if not console.is_terminal and step.batches_done == step.num_batches and step.num_specs:
                print(f"{what}: measured", file=sys.stderr, flush=True)

        yield show


def table(rows: Sequence[Row]) -> Table:
    """The main figure of each task for every sub-model, for a terminal."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    found = {(row.spec.name, row.task): row for row in rows}
    shown = Table()
    shown.add_column("sub-model")
    shown.add_column("effective", justify="right")
    for task in tasks:
        metric = next(iter(next(row for row in rows if row.task == task).metrics))
        shown.add_column(f"{task}: {metric.replace('_', ' ')}", justify="right")
    for name in dict.fromkeys(row.spec.name for row in rows):
        own = [found.get((name, task)) for task in tasks]  # one that an earlier command named may lack some
        sizes = next(row for row in own if row is not None)
        shown.add_row(name, f"{sizes.effective_parameters:,}", *map(main_figure, own))
    return shown


def main_figure(row: Row | None) -> str:
    """The first figure of a row with its interval; a dash where nothing was measured."""
    if row is None:
        return "–"
    found = next(iter(row.metrics.values()))
    if not math.isfinite(found.value):
        return "–"
    limits = told_alike(row.num_items) if math.isnan(found.low) else f"{found.low:.4f} to {found.high:.4f}"
    return f"{found.value:.4f} ({limits})"


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("sweep", SweepRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
