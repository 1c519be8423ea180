# SPDX-License-Identifier: Apache-2.0
"""What a sweep saves: 16 sub-models on real tasks with one model in memory, beside 16 evaluations of one each.

    matslice demo; python -m tests.bench.sweep [--items N] [--rounds N] [--demo DIR] [--document FILE]

Of each of the demo's tasks: how likely the right answers are, and of pictures and recordings what is answered, as
conf/task has it. Both ways find the same, which is checked to the last bit of every item. An evaluation of one
sub-model loads the model and reads the task, as a command would; what Python takes to start is in neither. Sweep and
evaluations take turns.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from model.slicing.official import official
from model.slicing.spec import SliceSpec
from model.text.tree import tree_of
from recipes import sweep
from recipes.sweep import SweepRecipe, build_engine, find_parent
from trainer.checkpoint import write_whole
from trainer.config import Device
from trainer.evaluation.metric import Values
from trainer.evaluation.task import Task
from trainer.evaluation.task_building import build_task
from trainer.evaluation.task_config import GenerationTaskConfig, TaskConfig, TaskKind

ROOT = Path(__file__).parents[2]
MEDIA = {"topic": "text", "digit": "pictures", "say": "recordings"}
TASKS = (  # what is asked of which rows
    ("topic", TaskKind.held_out), ("digit", TaskKind.held_out), ("say", TaskKind.held_out),
    ("digit", TaskKind.generation), ("say", TaskKind.generation),
)  # fmt: skip
ASKED = {TaskKind.held_out: "likelihood", TaskKind.generation: "answers"}
NEW_TOKENS = 4  # of an answer, as in conf/task


@dataclass(frozen=True)
class Measured:
    """One task: seconds and loads of the model in each round, and whether both ways found the same."""

    together: list[float]
    apart: list[float]
    loads: tuple[int, int]
    same: bool
    items: int

    @property
    def ratio(self) -> float:
        """Time of the sweep over that of all evaluations, medians."""
        return statistics.median(self.together) / statistics.median(self.apart)


def recipe_of(demo: Path) -> SweepRecipe:
    """The demo's base with its adapter."""
    return SweepRecipe(
        checkpoint=str(demo / "base" / "weights"), adapter_path=demo / "adapter" / "weights", tasks=["-"],
        output=Path("-"), compare=False, device=Device.cpu,
    )  # fmt: skip


def found(recipe: SweepRecipe, config: TaskConfig, specs: Sequence[SliceSpec]) -> tuple[list[list[Values]], Task]:
    """What is found of every item under each sub-model, from the checkpoint on the disk."""
    parent = find_parent(recipe)
    task = build_task(config, parent.processor, has_reference=False)
    engine = build_engine(recipe, parent, [task], None)
    by_spec: list[list[Values]] = [[] for _ in specs]
    for batch in task.batches:
        for own, values in zip(by_spec, task.measure(engine, specs, batch), strict=True):
            own.extend(values)
    return by_spec, task


def measure(recipe: SweepRecipe, config: TaskConfig, specs: Sequence[SliceSpec], rounds: int) -> Measured:
    """Both ways, in turns."""
    together, apart, loads, same, items = [], [], (0, 0), True, 0
    with mock.patch.object(sweep, "build_adapted", wraps=sweep.build_adapted) as loading:
        for _ in range(rounds):
            before, begun = loading.call_count, time.perf_counter()
            all_at_once, task = found(recipe, config, specs)
            together.append(time.perf_counter() - begun)
            between, begun = loading.call_count, time.perf_counter()
            one_by_one = [found(recipe, config, [spec])[0][0] for spec in specs]
            apart.append(time.perf_counter() - begun)
            loads = between - before, loading.call_count - between
            same, items = same and all_at_once == one_by_one, len(task.items)
    return Measured(together, apart, loads, same, items)


def main() -> None:
    """Measure, print, and write the document if one is named."""
    parser = argparse.ArgumentParser(description="What a sweep saves.")
    parser.add_argument("--demo", type=Path, default=Path("out/demo"), help="what matslice demo left")
    parser.add_argument("--items", type=int, default=96, help="of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--document", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = recipe_of(options.demo)
    text = find_parent(recipe).config.text
    specs = [one.spec for one in official(text)]
    console, results = Console(width=120), dict[str, Measured]()
    for name, kind in TASKS:
        config = TaskConfig(
            name=name, kind=kind, files=[str(options.demo / "data" / name / "test.jsonl")],
            max_items=options.items, batch_size=16, generation=GenerationTaskConfig(max_new_tokens=NEW_TOKENS),
        )  # fmt: skip
        label = f"{name} ({MEDIA[name]}), {ASKED[kind]}"
        results[label] = measure(recipe, config, specs, options.rounds)
        assert results[label].same, f"{label}: a sweep found something else"
        console.print(f"{label}: {results[label].ratio:.2f}")
    layers = sum(len(spec.kept_layers) for spec in specs)
    run = tree_of(specs, text).num_steps
    columns = ("task", "items", "16 evaluations", "one sweep", "ratio", "loads")
    rows = [
        (label, str(one.items), f"{statistics.median(one.apart):.1f} s",
         f"{statistics.median(one.together):.1f} s", f"{one.ratio:.2f}", f"{one.loads[0]} instead of {one.loads[1]}")
        for label, one in results.items()
    ]  # fmt: skip
    apart, together = (
        sum(statistics.median(getattr(one, way)) for one in results.values()) for way in ("apart", "together")
    )
    rows.append(("all", "", f"{apart:.1f} s", f"{together:.1f} s", f"{together / apart:.2f}", ""))
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    told = (
        f"Of {layers} layers of the 16 sub-models {run} are run where prompts and answers are read: the others are the"
        " beginnings of several. What is answered is made token by token by each sub-model for itself."
    )
    console.print(f"{told} Every item's figures are the same both ways, bit for bit.")
    if options.document is not None:
        write_document(options, columns, rows, told)


def write_document(
    options: argparse.Namespace, columns: Sequence[str], rows: Sequence[Sequence[str]], told: str
) -> None:
    """The table with what it was measured by."""
    lines = [" | ".join(columns), " | ".join(["---", *["---:"] * (len(columns) - 1)]), *map(" | ".join, rows)]
    command = (
        f"python -m tests.bench.sweep --items {options.items} --rounds {options.rounds} --threads {options.threads}"
    )
    packages = f"Python {platform.python_version()}, torch {version('torch')}"
    write_whole(options.document, "\n".join([
        "# What a sweep saves", "",
        "Google's 16 sub-models, as they are in the demo's base, on what the demo holds out of its three tasks: one",
        "sweep beside 16 evaluations of one sub-model each, which load the model and read the rows anew. Asked is how",
        f"likely the right answer is, or what is answered, in at most {NEW_TOKENS} tokens as in conf/task. The figures",
        f"of every item are the same both ways, bit for bit. Medians of {options.rounds} rounds, in which both take",
        "turns.", "",
        *(f"| {line} |" for line in lines), "", told, "",
        f"`matslice demo; {command}`, {datetime.now(UTC):%Y-%m-%d}, {options.threads} threads, {packages}.", "",
    ]))  # fmt: skip


if __name__ == "__main__":
    main()
