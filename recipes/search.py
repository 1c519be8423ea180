# SPDX-License-Identifier: Apache-2.0
"""Search the sub-models of a checkpoint for the best under each of several budgets (Mix'n'Match).

Rows are in three splits: the first is searched, the best few of each budget are measured again on the second, and
what that decides is measured on the third, which had no part in it. Results are in ``output``: search.json, slices/
(files as in conf/slice), and those of a sweep over the third split: rows.jsonl, report.html, frontier.png and tables.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.errors import ConfigError, InputError
from model.layers.embedding import TablePlacement
from model.slicing.official import official
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from recipes.locate import find_checkpoint
from recipes.output import check_place
from recipes.program import start
from recipes.sweep import (
    Parent,
    Prepared,
    SweepRecipe,
    build_engine,
    dtype_of,
    find_parent,
    fingerprint_of,
    measured,
)  # fmt: skip
from trainer.checkpoint import write_whole
from trainer.config import Device, Precision
from trainer.evaluation.engine import Engine
from trainer.evaluation.held_out_task import HeldOutTask, held_out_task
from trainer.evaluation.splits import digest_of, split
from trainer.evaluation.statistics import StatisticsConfig
from trainer.evaluation.task_config import TaskConfig, TaskKind
from trainer.search.cost import CostConfig, Costs, Resource, exact_costs
from trainer.search.evaluator import Evaluator, Key, key_of
from trainer.search.latency import LatencyConfig, Stopwatch, latency_costs
from trainer.search.measured import Measured
from trainer.search.methods import SearchMethod
from trainer.search.problem import Problem
from trainer.search.result import SearchResult, slice_file, written_slices
from trainer.search.search import search
from trainer.search.space import Space, SpaceConfig
from trainer.sweep.page.page import PAGE_FILE
from trainer.sweep.store import ROWS_FILE

SEARCH, CALIBRATION, REPORT = "search", "calibration", "report"
RESULT_FILE, MEASURED_FILE, SLICES = "search.json", "measured.jsonl", "slice"  # the last is a group for --config-dir


@dataclass(kw_only=True, slots=True)
class SearchRecipe:
    """Search the sub-models of a checkpoint for the best under each budget; say how good on rows kept out of it."""

    checkpoint: str  # directory or hub name of published weights
    files: list[str]  # files of rows (jsonl, json, parquet, csv, tsv, arrow, txt), directories, hub names
    output: Path  # directory of the results
    budget: list[float] = field(default_factory=list)  # limits of cost.resource; empty = num_budgets of them, evenly
    num_budgets: int = 8
    method: SearchMethod = SearchMethod.surrogate
    max_evaluations: int = 100  # sub-models measured on the split that is searched
    top_k: int = 3  # the best of each budget, measured again on the calibration split
    shares: list[float] = field(default_factory=lambda: [0.4, 0.3, 0.3])  # of the rows: search, calibration, report
    report_files: list[str] = field(default_factory=list)  # rows to report on; then shares are the first two's
    seed: int = 0  # draws the splits, and what the method draws
    resume: bool = False  # go on with what is there
    space: SpaceConfig = field(default_factory=SpaceConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)  # of cost.resource=latency_seconds
    official: bool = True  # report Google's sub-models beside what was found
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    adapter_path: Path | None = None  # directory of a trained adapter
    merge: bool = True  # fold the adapter into the weights first, as slices that are shipped have it; takes less time
    modalities: list[Modality] | None = None  # towers to load if needed, beside text; null = all
    max_items: int | None = None  # of files, drawn by seed; null = all
    max_length_tokens: int = 2048
    batch_size: int = 8  # rows
    shared_gib: float = 1.0  # about how much of what sub-models have in common waits in memory; less takes longer
    per_layer_table: TablePlacement = TablePlacement.device  # or host, mmap: rows come as needed
    soft_token_cache: Path | None = None  # directory that keeps what the towers make of images and sound
    precision: Precision = Precision.fp32
    device: Device = Device.auto
    threads: int | None = None  # of the processor; null leaves it to torch

    def __post_init__(self) -> None:
        for key in ("num_budgets", "max_evaluations", "top_k"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if len(self.shares) != (2 if self.report_files else 3):
            what = "search and calibration, as report_files is given" if self.report_files else "all three splits"
            raise ConfigError(f"shares is {self.shares}; give those of {what}")
        if odd := [limit for limit in self.budget if limit <= 0]:
            raise ConfigError(f"budget has {odd[0]:g}; budgets are above 0")


def run(recipe: SearchRecipe) -> None:
    """Search, report, and print what was found."""
    check_place(recipe.output)
    if not recipe.resume and any((recipe.output / name).exists() for name in (MEASURED_FILE, ROWS_FILE)):
        raise ConfigError(
            f"output: '{recipe.output}' already holds a search or a sweep; go on with a search by resume=true beside"
            " all that it was begun with, or choose another directory"
        )
    sweeping = as_sweep(recipe)
    parent = find_parent(sweeping)
    space = Space.of(recipe.space, parent.config.text)
    is_timed = recipe.cost.resource is Resource.latency_seconds
    if not is_timed:  # before anything is read or loaded that takes long
        budgets_of(recipe, exact_costs(space, parent.config, recipe.cost))
    splits = splits_of(recipe, parent)
    engine = build_engine(sweeping, parent, list(splits.values()), None)
    watch = Stopwatch(engine.gemma, recipe.latency) if is_timed else None
    costs = exact_costs(space, parent.config, recipe.cost) if watch is None else latency_costs(space, watch)
    recipe.output.mkdir(parents=True, exist_ok=True)
    found = look(recipe, engine, splits, costs, price=watch and watch.nanoseconds_of)
    named = write(recipe, found, parent)
    full = SliceSpec.full(parent.config.text)
    beside = [one.spec for one in official(parent.config.text)] if recipe.official else []
    specs = {spec.name: spec for spec in (full, *beside, *named.values())}
    settings = {
        "searched": {**searched_settings(recipe), "rows": {name: one.fingerprint for name, one in splits.items()}}
    }
    prepared = Prepared(parent, [splits[REPORT]], list(specs.values()), full, settings)
    measured(sweeping, prepared, lambda: dataclasses.replace(engine, reference=full))
    show(recipe, found, named)


def budgets_of(recipe: SearchRecipe, costs: Costs) -> list[int]:
    """The budgets in whole steps of the resource.

    Raises:
        ConfigError: One is below what the cheapest sub-model of the space costs; that is named.
    """
    budgets = [int(limit * costs.resource.steps) for limit in recipe.budget] or costs.spread(recipe.num_budgets)
    costs.check(min(budgets))
    return budgets


def splits_of(recipe: SearchRecipe, parent: Parent) -> dict[str, HeldOutTask]:
    """The tasks of the three splits, by name; none has a row of another's.

    Raises:
        MatsliceError: Files or rows cannot be used, or are too few.
    """
    names = (SEARCH, CALIBRATION) if recipe.report_files else (SEARCH, CALIBRATION, REPORT)
    found = split(
        rows_of(recipe, parent, recipe.files, SEARCH), dict(zip(names, recipe.shares, strict=True)), seed=recipe.seed
    )  # fmt: skip
    if recipe.report_files:
        found[REPORT] = rows_of(recipe, parent, recipe.report_files, REPORT)
        refuse_common(found)
    return found


def rows_of(recipe: SearchRecipe, parent: Parent, files: list[str], name: str) -> HeldOutTask:
    """The rows of files as a task of this name."""
    config = TaskConfig(
        name=name, kind=TaskKind.held_out, files=files, max_items=recipe.max_items,
        seed=None if recipe.max_items is None else recipe.seed, max_length_tokens=recipe.max_length_tokens,
        batch_size=recipe.batch_size,
    )  # fmt: skip
    return held_out_task(config, parent.processor, config.chosen_metrics(has_reference=True))


def refuse_common(splits: Mapping[str, HeldOutTask]) -> None:
    """Raise InputError where a row to report on is also searched."""
    searched = {digest_of(row): row for name in (SEARCH, CALIBRATION) for row in splits[name].rows}
    if common := [row for row in splits[REPORT].rows if digest_of(row) in searched]:
        raise InputError(
            f"report_files: {common[0].where} is the same row as {searched[digest_of(common[0])].where}, which is"
            f" searched ({len(common)} such rows); what is reported must have had no part in the search, so take them"
            " out of either"
        )


def look(
    recipe: SearchRecipe, engine: Engine, splits: Mapping[str, HeldOutTask], costs: Costs, *,
    price: Callable[[SliceSpec], int] | None,
) -> SearchResult:  # fmt: skip
    """The search itself."""
    model = fingerprint_of(find_checkpoint(recipe.checkpoint), recipe.adapter_path)
    identity = f"{model} {dtype_of(recipe.precision)} {'merged' if recipe.merge else 'adapted'}"
    console = Console(stderr=True)

    def evaluator(name: str, limit: int | None) -> Evaluator:
        def told(known: int, best: float) -> None:
            console.print(f"{name}: {known:,} sub-models measured, the lowest loss is {best:.4f} nats per token")

        measure = Measured(recipe.output / MEASURED_FILE, identity, splits[name], engine, told)
        return Evaluator(measure, limit=limit)

    problem = Problem(
        costs=costs, budgets=budgets_of(recipe, costs), evaluator=evaluator(SEARCH, recipe.max_evaluations),
        seed=recipe.seed,
    )  # fmt: skip
    return search(problem, recipe.method, evaluator(CALIBRATION, None), top_k=recipe.top_k, price=price)


def write(recipe: SearchRecipe, result: SearchResult, parent: Parent) -> dict[Key, SliceSpec]:
    """Write what was found; give the picked sub-models under the names that their files have."""
    config, named = parent.config.text, dict[Key, SliceSpec]()
    directory = recipe.output / SLICES
    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.yaml"):
        old.unlink()
    for written in written_slices(result.picks, config):
        spec = SliceSpec.resolve(written, config)
        named[key_of(spec)] = spec
        picks = [pick for pick in result.picks if key_of(pick.found.spec) == key_of(spec)]
        told = ", ".join(result.resource.told(pick.budget) for pick in picks)
        comments = [
            f"The best under {told}, found by matslice search (method={result.method}):",
            f"{result.resource.told(picks[0].found.price)}, {picks[0].found.calibration_loss:.4f} nats per token.",
            f"  matslice slice checkpoint={recipe.checkpoint} --config-dir {recipe.output} slice={written.name}",
        ]
        write_whole(directory / f"{written.name}.yaml", slice_file(written, comments))
    record = {"searched": searched_settings(recipe), **result.record()}
    write_whole(recipe.output / RESULT_FILE, json.dumps(record, indent=2) + "\n")
    return named


def searched_settings(recipe: SearchRecipe) -> dict[str, Any]:
    """What decides what is found, beside the model and the rows, as JSON values."""
    keys = ("budget", "num_budgets", "method", "max_evaluations", "top_k", "shares", "seed", "space", "cost", "latency")
    written = dataclasses.asdict(recipe)
    return json.loads(json.dumps({key: written[key] for key in keys}))


def as_sweep(recipe: SearchRecipe) -> SweepRecipe:
    """The sweep over the report split."""
    same = {field.name for field in dataclasses.fields(SweepRecipe)} & {
        field.name for field in dataclasses.fields(recipe)
    }
    return SweepRecipe(**{name: getattr(recipe, name) for name in same}, tasks=[REPORT])


def show(recipe: SearchRecipe, result: SearchResult, named: Mapping[Key, SliceSpec]) -> None:
    """What was found, for a terminal."""
    shown = Table()
    for heading in ("budget", "cost", "loss on calibration", "sub-model"):
        shown.add_column(heading, justify="left" if heading == "sub-model" else "right")
    told = result.resource.told
    for pick in result.picks:
        name = named[key_of(pick.found.spec)].name
        shown.add_row(told(pick.budget), told(pick.found.price), f"{pick.found.calibration_loss:.4f}", name)
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    print(
        f"{result.evaluations} sub-models measured on the split that was searched, {result.calibration_evaluations} of"
        f" them again; {recipe.output / SLICES}: files for slice=; {recipe.output / PAGE_FILE}: all on rows that had no"
        " part in it"
    )


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("search", SearchRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
