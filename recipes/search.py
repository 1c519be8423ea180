# SPDX-License-Identifier: Apache-2.0
"""Search the sub-models of a checkpoint for the best under each of several budgets (Mix'n'Match).

Rows are in three splits: the first is searched, the best few of each budget are measured again on the second, both
together decide, and what they chose is measured on the third, which had no part in it. Results are in ``output``:
search.json, slice/ (files as in conf/slice), and those of a sweep over the third split: rows.jsonl, report.html,
frontier.png and tables.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.config import ModelConfig
from model.errors import ConfigError, InputError
from model.layers.embedding import TablePlacement
from model.slicing.official import official
from model.slicing.plan import check_context
from model.slicing.spec import Shape, SliceSpec
from model.tower_config import Modality
from recipes.build import find_device, fingerprint_of
from recipes.output import check_directory
from recipes.program import start
from recipes.sweep import (
    Parent,
    Prepared,
    SweepRecipe,
    build_engine,
    computed_by,
    dtype_of,
    find_parent,
    measured,
)  # fmt: skip
from trainer.checkpoint import write_whole
from trainer.config import Device, Precision, WandbMode
from trainer.evaluation.engine import Engine
from trainer.evaluation.held_out_task import HeldOutTask, held_out_task
from trainer.evaluation.splits import digest_of, origin_of, split
from trainer.evaluation.statistics import StatisticsConfig
from trainer.evaluation.task_config import TaskConfig, TaskKind
from trainer.locking import lock
from trainer.search.cost import CostConfig, Costs, Resource, exact_costs
from trainer.search.evaluator import Evaluator
from trainer.search.latency import LatencyConfig, Stopwatch, latency_costs
from trainer.search.measured import Measured
from trainer.search.methods import SearchMethod, check_evaluations
from trainer.search.problem import Problem
from trainer.search.result import SearchResult, slice_file, written_slices
from trainer.search.search import search
from trainer.search.space import Space, SpaceConfig
from trainer.sweep.identity import refuse_another
from trainer.sweep.page.page import PAGE_FILE
from trainer.sweep.publish import check_publishing
from trainer.sweep.row import spec_of
from trainer.sweep.store import ROWS_FILE, SWEEP_FILE, taken

ROOM = 1.02  # of a measured time: the next measurement may be a little longer
SEARCH, CALIBRATION, REPORT = "search", "calibration", "report"
SETTINGS_FILE, RESULT_FILE, MEASURED_FILE = "searched.json", "search.json", "measured.jsonl"
SLICES, CUT = "slice", "cut"  # the first is a group for --config-dir; what is cut by its files may go into the second


@dataclass(kw_only=True, slots=True)
class SearchRecipe:
    """Search the sub-models of a checkpoint for the best under each budget; say how good on rows kept out of it."""

    checkpoint: str  # directory or hub name of published weights
    files: list[str]  # files of rows (jsonl, json, parquet, csv, tsv, arrow, txt), directories, hub names
    output: Path  # directory of the results
    budget: Any = field(default_factory=list)  # a limit of cost.resource or a list; empty = num_budgets, evenly
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
    report_frontier: bool = True  # report all of the frontier, not only what is the best of some budget
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
    wandb: WandbMode = WandbMode.off  # off, offline or online: a table and plots of the report there
    wandb_project: str = "matslice"
    tensorboard: bool = False  # figures of the report for TensorBoard, in output

    def __post_init__(self) -> None:
        self.budget = numbers_of("budget", self.budget)
        for key in ("num_budgets", "max_evaluations", "top_k"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if len(self.shares) != (2 if self.report_files else 3):
            what = "search and calibration, as report_files is given" if self.report_files else "all three splits"
            raise ConfigError(f"shares is {self.shares}; give those of {what}")
        if odd := [limit for limit in self.budget if not (math.isfinite(limit) and limit > 0)]:
            raise ConfigError(f"budget has {odd[0]:g}; budgets are numbers above 0")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or more")


def numbers_of(key: str, written: Any) -> list[float]:
    """One number, or several, as a list; ConfigError if it is neither."""
    several = [] if written is None else list(written) if isinstance(written, Sequence) else [written]
    if isinstance(written, str) or any(isinstance(one, bool) or not isinstance(one, int | float) for one in several):
        raise ConfigError(f"{key} is {written!r}; write a number, or several as in {key}=[2.5e9,3e9]")
    return [float(one) for one in several]


def run(recipe: SearchRecipe) -> None:
    """Search, report, and print what was found."""
    check_directory(recipe.output)
    check_beside(recipe)
    check_publishing(wandb=recipe.wandb, tensorboard=recipe.tensorboard)
    sweeping = as_sweep(recipe)
    parent = find_parent(sweeping)
    space = Space.of(recipe.space, parent.config.text)
    # Before anything is read or loaded that takes long
    if recipe.cost.resource is Resource.latency_seconds:
        check_context(parent.config.text, recipe.latency.context_tokens + recipe.latency.new_tokens)
        num_budgets = len(set(recipe.budget)) or recipe.num_budgets
    else:
        num_budgets = len(set(budgets_of(recipe, exact_costs(space, parent.config, recipe.cost))))
    check_evaluations(recipe.method, space, num_budgets, recipe.max_evaluations)
    splits = splits_of(recipe, parent)
    settings = settings_of(recipe, parent, splits)

    @cache
    def engine() -> Engine:
        """The model, loaded when something is to be measured."""
        return build_engine(sweeping, parent, list(splits.values()), None)

    recipe.output.mkdir(parents=True, exist_ok=True)
    with lock(recipe.output, taken(recipe.output)):
        claim(recipe.output / SETTINGS_FILE, settings)
        if not (recipe.output / RESULT_FILE).exists():
            identity = json.dumps([settings[key] for key in ("model", "dtype", "merge")])
            write(recipe, look(recipe, engine(), splits, space, parent.config, identity), parent)
    found = json.loads((recipe.output / RESULT_FILE).read_text(encoding="utf-8"))
    full = SliceSpec.full(parent.config.text)
    beside = [one.spec for one in official(parent.config.text)] if recipe.official else []
    told = [*found["picks"], *(found["frontier"] if recipe.report_frontier else ())]
    # What was found is called by its name there, and stands there once, Google's or not.
    specs = {spec.shape: spec for spec in (full, *beside, *(spec_of(one["spec"]) for one in told))}
    prepared = Prepared(parent, [splits[REPORT]], list(specs.values()), full, {"searched": settings}, program="search")
    measured(sweeping, prepared, lambda: dataclasses.replace(engine(), reference=full))
    show(recipe, found)


def check_beside(recipe: SearchRecipe) -> None:
    """Raise ConfigError if the directory of the results holds what is not to be gone on with."""
    searched = (recipe.output / SETTINGS_FILE).exists()
    swept = any((recipe.output / name).exists() for name in (SWEEP_FILE, ROWS_FILE))
    if (searched or swept) and not recipe.resume:
        raise ConfigError(
            f"output: '{recipe.output}' already holds a search or a sweep; go on with a search by resume=true beside"
            " all that it was begun with, or choose another directory"
        )
    if swept and not searched:
        raise ConfigError(
            f"output: '{recipe.output}' holds a sweep, and no search that resume=true could go on with; choose another"
            " directory, or go on with the sweep by 'matslice sweep'"
        )


def claim(path: Path, settings: dict[str, Any]) -> None:
    """Write what this search is, or compare it with what is there.

    Raises:
        CheckpointError: The search there is another one; the keys and both values are named.
    """
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        before, now = ({"sweep": values, "specs": {}} for values in (stored, settings))
        refuse_another(stored=before, now=now, path=path, what="search")
    else:
        write_whole(path, json.dumps(settings, indent=2) + "\n")


def budgets_of(
    recipe: SearchRecipe, costs: Costs, *, price: Callable[[SliceSpec], int] | None = None
) -> list[int]:  # fmt: skip
    """The budgets in whole steps of the resource.

    Args:
        price: Measures what a whole sub-model costs where the table of costs is only near that; the ends of what
            budgets are spread over are measured by it.

    Raises:
        ConfigError: One is below what the cheapest sub-model of the space costs; that is named.
    """
    if recipe.budget:
        budgets = [int(limit * costs.resource.steps) for limit in recipe.budget]
    elif price is None:
        budgets = costs.spread(recipe.num_budgets)
    else:
        least = int(ROOM * max(price(costs.space.spec(costs.floor)), costs.at(costs.floor)))
        most = max(int(ROOM * price(costs.space.spec(costs.space.top))), costs.ceiling, least)
        num = recipe.num_budgets
        budgets = [least + (most - least) * step // max(num - 1, 1) for step in range(num)]
    costs.check(min(budgets))
    return budgets


def splits_of(recipe: SearchRecipe, parent: Parent) -> dict[str, HeldOutTask]:
    """The tasks of the three splits, by name; none has a row of another's, nor a piece of a text of another's.

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
    """Raise InputError where a row to report on, or another piece of its text, is also searched."""
    rows = [row for name in (SEARCH, CALIBRATION) for row in splits[name].rows]
    searched = {digest: row for row in rows for digest in (origin_of(row), digest_of(row))}
    if common := [row for row in splits[REPORT].rows if {origin_of(row), digest_of(row)} & searched.keys()]:
        first = common[0]
        other = searched.get(digest_of(first))
        what = "the same row as" if other is not None else "of the same text as"
        raise InputError(
            f"report_files: {first.where} is {what} {(other or searched[origin_of(first)]).where}, which is searched"
            f" ({len(common)} such rows); what is reported must have had no part in the search, so take them out of"
            " either"
        )


def look(
    recipe: SearchRecipe, engine: Engine, splits: Mapping[str, HeldOutTask], space: Space, config: ModelConfig,
    identity: str,
) -> SearchResult:  # fmt: skip
    """The search itself; ``identity`` says what weights losses are of."""
    console = Console(stderr=True)

    def evaluator(name: str, limit: int | None) -> Evaluator:
        def told(known: int, best: float) -> None:
            console.print(f"{name}: {known:,} sub-models measured, the lowest loss is {best:.4f} nats per token")

        measure = Measured(recipe.output / MEASURED_FILE, identity, splits[name], engine, told)
        return Evaluator(measure, limit=limit)

    price: Callable[[SliceSpec], int] | None = None
    if recipe.cost.resource is Resource.latency_seconds:
        watch = Stopwatch(engine.gemma, recipe.latency)
        costs, price = latency_costs(space, watch), watch.nanoseconds_of
    else:
        costs = exact_costs(space, config, recipe.cost)
    problem = Problem(
        costs=costs, budgets=budgets_of(recipe, costs, price=price),
        evaluator=evaluator(SEARCH, recipe.max_evaluations), seed=recipe.seed,
    )  # fmt: skip
    return search(problem, recipe.method, evaluator(CALIBRATION, None), top_k=recipe.top_k, price=price)


def write(recipe: SearchRecipe, result: SearchResult, parent: Parent) -> None:
    """Write what was found: a file for each sub-model that was picked or is on the frontier, and last the record."""
    config, named = parent.config.text, dict[Shape, str]()
    directory = recipe.output / SLICES
    directory.mkdir(exist_ok=True)
    for left in directory.glob("*.yaml"):  # of a search that was stopped here, and by latency may have found others
        left.unlink()
    told = result.resource.told
    every = {one.spec.shape: one for one in (*(pick.found for pick in result.picks), *result.frontier)}
    for written in written_slices([found.spec for found in every.values()], config):
        found = every[SliceSpec.resolve(written, config).shape]
        named[found.spec.shape] = written.name
        budgets = [told(pick.budget) for pick in result.picks if pick.found.spec.shape == found.spec.shape]
        comments = [
            f"Found by matslice search (method={result.method}): {told(found.price)},",
            *(f"the best under {budget}," for budget in budgets),
            *(["which nothing that was measured beats in both cost and loss,"] if found in result.frontier else []),
            f"{found.calibration_loss:.4f} nats per token on the calibration split.",
            f"  {command_to_cut(recipe, written.name)}",
        ]
        write_whole(directory / f"{written.name}.yaml", slice_file(written, comments))
    record = result.record()
    for one, found in (
        *zip(record["picks"], (pick.found for pick in result.picks), strict=True),
        *zip(record["frontier"], result.frontier, strict=True),
    ):
        one["spec"]["name"] = named[found.spec.shape]
    write_whole(recipe.output / RESULT_FILE, json.dumps(record, indent=2) + "\n")


def command_to_cut(recipe: SearchRecipe, name: str) -> str:
    """The command that cuts what was measured under a name out of the checkpoint, the adapter with it."""
    adapted = [] if recipe.adapter_path is None else [f"adapter_path={recipe.adapter_path}"]
    if adapted and recipe.merge:
        adapted.append("merge=true")
    return shlex.join([
        "matslice", "slice", f"checkpoint={recipe.checkpoint}", *adapted, "--config-dir", str(recipe.output),
        f"slice={name}", f"output={recipe.output / CUT / name}",
    ])  # fmt: skip


def settings_of(recipe: SearchRecipe, parent: Parent, splits: Mapping[str, HeldOutTask]) -> dict[str, Any]:
    """What decides what is found, as JSON values."""
    keys = ["budget", "num_budgets", "method", "max_evaluations", "top_k", "shares", "seed", "space", "cost", "latency"]
    written = dataclasses.asdict(recipe)
    settings = {key: written[key] for key in keys} | {
        "model": fingerprint_of(parent.checkpoint, recipe.adapter_path), "dtype": dtype_of(recipe.precision),
        "merge": recipe.merge and recipe.adapter_path is not None, "modalities": sorted(parent.config.modalities),
        **computed_by(parent, list(splits.values())), "rows": {name: one.fingerprint for name, one in splits.items()},
    }  # fmt: skip
    if recipe.cost.resource is Resource.latency_seconds:
        settings |= {
            "device": find_device(recipe.device).type, "threads": recipe.threads,
            "per_layer_table": recipe.per_layer_table,
        }  # fmt: skip
    return json.loads(json.dumps(settings))


def as_sweep(recipe: SearchRecipe) -> SweepRecipe:
    """The sweep over the report split."""
    same = {field.name for field in dataclasses.fields(SweepRecipe)} & {
        field.name for field in dataclasses.fields(recipe)
    }
    return SweepRecipe(**{name: getattr(recipe, name) for name in same}, tasks=[REPORT])


def show(recipe: SearchRecipe, found: Mapping[str, Any]) -> None:
    """What was found, for a terminal."""
    shown = Table()
    for heading in ("budget", "cost", "loss on calibration", "sub-model"):
        shown.add_column(heading, justify="left" if heading == "sub-model" else "right")
    told = recipe.cost.resource.told
    for pick in found["picks"]:
        price = pick["cost"] if pick["measured_cost"] is None else pick["measured_cost"]
        shown.add_row(told(pick["budget"]), told(price), f"{pick['calibration_loss']:.4f}", pick["spec"]["name"])
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    print(
        f"{found['evaluations']} sub-models measured on the split that was searched, {found['calibration_evaluations']}"
        f" of them again; {recipe.output / SLICES}: files for slice=; {recipe.output / PAGE_FILE}: all on rows that had"
        " no part in it, nor had others of their texts"
    )


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("search", SearchRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
