# SPDX-License-Identifier: Apache-2.0
"""``report.html``: a sweep to look at in any browser, from disk, with no network and nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from model.config import LayerType, TextConfig
from model.errors import counted
from trainer.checkpoint import write_whole
from trainer.sweep.page import chart as plot
from trainer.sweep.page.data import page_data, safe_json
from trainer.sweep.page.facts import Cost, Facts, short
from trainer.sweep.page.picture import PICTURE_FILE, draw_frontiers
from trainer.sweep.page.sheets import ROWS_CSV, SLICES_CSV, write_rows_csv, write_slices_csv
from trainer.sweep.page.table import columns
from trainer.sweep.row import Row
from trainer.sweep.run import Comparison

PAGE_FILE = "report.html"
FILES = "trainer.sweep.page"  # where the template, the style sheet and the program lie


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a sweep comes from, for the page.

    Args:
        title: Heading of the page.
        parent: The checkpoint that was swept, as it was given.
        command: What was run, word by word.
    """

    title: str
    parent: str
    command: Sequence[str]


def write_report(
    rows: Sequence[Row],
    directory: Path,
    *,
    config: TextConfig,
    origin: Origin,
    comparisons: Mapping[str, Comparison] | None = None,
    mmlu_task: str | None = None,
) -> None:
    """Write the page, the picture and both tables into ``directory``; what stands there is replaced.

    Args:
        rows: Of one model; at most one per sub-model and task.
        directory: Is made if it is not there.
        config: The parent's.
        origin: What the page says about where the rows come from.
        comparisons: Of sub-models with the parent, by task; None leaves out differences and draws each point's own
            interval as the band.
        mmlu_task: The task whose accuracy goes into the accuracy column of Google's schema, which is of MMLU; None
            leaves that column empty.

    Raises:
        InputError: There are no rows, two of the same sub-model and task, or rows of several models.
        ConfigError: There is no such task, or it has no accuracy.
        SliceError: A sub-model is no part of this config.
    """
    facts = Facts(rows=rows, config=config, comparisons=comparisons or {})
    directory.mkdir(parents=True, exist_ok=True)
    write_slices_csv(facts, directory / SLICES_CSV, mmlu_task=mmlu_task)
    write_rows_csv(facts, directory / ROWS_CSV)
    draw_frontiers(facts, directory / PICTURE_FILE)
    write_whole(directory / PAGE_FILE, page(facts, origin))


def page(facts: Facts, origin: Origin) -> str:
    """The whole page. Names of users are text in it, never HTML: the template escapes all that it is given."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(asset("page.html"))
    style, script = asset("page.css"), asset("page.js")
    found, front = columns(facts), fronts(facts)
    return template.render(
        title=origin.title,
        lead=lead(facts),
        style=Markup(style),
        style_hash=source_hash(style),
        script=Markup(script),
        script_hash=source_hash(script),
        data=Markup(safe_json(page_data(facts))),
        confidence=f"{100 * facts.rows[0].confidence:.4g} %",
        chance=f"{1 - facts.rows[0].confidence:.4g}",
        costs=[facts.scale_of_cost(cost).label for cost in Cost],
        columns=found,
        others=sum(column.task is None for column in found) - 2,
        tasks=[task_view(facts, index, task, found) for index, task in enumerate(facts.tasks)],
        subs=[sub_view(facts, row, front) for row in facts.subs],
        layers=[{"is_global": kind is LayerType.full_attention} for kind in facts.config.layer_types],
        any_global=LayerType.full_attention in facts.config.layer_types,
        any_official=any(row.official for row in facts.subs),
        any_parent=any(facts.is_parent(row.spec) for row in facts.subs),
        any_change=any(facts.has_changes(task, name) for task in facts.tasks for name in facts.metrics(task)),
        band=facts.band_words,
        lineage=lineage(facts, origin),
        first=facts.rows[0],
        version=version("matslice"),
        beside=", ".join((PICTURE_FILE, ROWS_CSV, SLICES_CSV)),
        width=plot.WIDTH, height=plot.HEIGHT, left=plot.LEFT, right=plot.RIGHT, top=plot.TOP, bottom=plot.BOTTOM,
    )  # fmt: skip


def asset(name: str) -> str:
    """A file of this package."""
    return (resources.files(FILES) / name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """As a content security policy names what may run: nothing but this very text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def lead(facts: Facts) -> str:
    """What this is, in a sentence."""
    tasks, subs = counted(len(facts.tasks), "task"), counted(len(facts.subs), "sub-model")
    largest, shown = facts.subs[0], facts.scale_of_cost(Cost.effective_parameters)
    smallest = facts.subs[-1]
    many = f"{shown.text(largest.effective_parameters)} {shown.unit.removesuffix('s')}".strip()
    sizes = f"{shown.text(smallest.effective_parameters)} to {many}" if len(facts.subs) > 1 else many
    return f"{subs} of one set of weights on {tasks}. They have {sizes} effective parameters."


def task_view(facts: Facts, index: int, task: str, found: Sequence[Any]) -> dict[str, Any]:
    """What the template shows of a task."""
    number = max(row.num_items for row in facts.rows if row.task == task)
    return {
        "name": task,
        "number": f"{number:,} {'item' if number == 1 else 'items'}",
        "chart": plot.chart(facts, task, facts.metrics(task)[0], Cost.effective_parameters),
        "columns": sum(column.task == index for column in found),
    }


def fronts(facts: Facts) -> set[str]:
    """Names of what is on the frontier of any task, before anything is chosen."""
    main = {task: facts.metrics(task)[0] for task in facts.tasks}
    return {name for task in main for name in facts.frontier(task, main[task], Cost.effective_parameters)}


def sub_view(facts: Facts, row: Row, front: set[str]) -> dict[str, Any]:
    """What the template shows of a sub-model, besides its columns."""
    kept = dict(zip(row.spec.kept_layers, row.spec.ffn_widths, strict=True))
    widths = [
        {"share": kept[layer] / whole, "percent": percent(kept[layer] / whole)} if layer in kept else None
        for layer, whole in enumerate(facts.config.intermediate_size)
    ]
    return {
        "name": row.spec.name,
        "official": row.official and short(row.official),
        "parent": facts.is_parent(row.spec),
        "front": row.spec.name in front,
        "widths": widths,
    }


def percent(share: float) -> str:
    """A share of a width, in two or three characters: never 0 for what is there, nor 100 for what is not whole."""
    whole = round(100 * share)
    return str(min(max(whole, 1), 99 if share < 1 else 100))


def lineage(facts: Facts, origin: Origin) -> list[tuple[str, str]]:
    """Where the figures come from, so that anybody can find them again."""
    first = facts.rows[0]
    seeds = sorted({row.seed for row in facts.rows})
    versions = {name: found for row in facts.rows for name, found in row.versions.items()}
    data = {row.task: row.data for row in facts.rows}
    return [
        ("Parent", origin.parent),
        ("Weights", first.model),
        *((f"Data of {task}", fingerprint) for task, fingerprint in data.items()),
        ("Command", shlex.join(origin.command)),
        ("Seed", ", ".join(map(str, seeds))),
        ("Versions", ", ".join(f"{name} {found}" for name, found in sorted(versions.items()))),
    ]
