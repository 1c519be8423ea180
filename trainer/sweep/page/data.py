# SPDX-License-Identifier: Apache-2.0
"""The facts as the page's program reads them: JSON that can stand inside HTML."""

from __future__ import annotations

import json
import math
from typing import Any

from trainer.sweep.page.facts import Cost, Facts, Scale, short
from trainer.sweep.page.table import p_text
from trainer.sweep.row import Row, told_alike

UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page_data(facts: Facts) -> dict[str, Any]:
    """What is drawn. Sub-models stand in the order of ``facts.subs`` and are meant by their place in it."""
    place = {row.spec.name: index for index, row in enumerate(facts.subs)}
    costs = [{**scale(facts.scale_of_cost(cost)), "key": cost.name} for cost in Cost]
    return {
        "confidence": facts.rows[0].confidence,
        "costs": costs,
        "subs": [sub(facts, row) for row in facts.subs],
        "tasks": [
            {
                "name": task,
                "items": (items := max(row.num_items for row in facts.rows if row.task == task)),
                "alike": told_alike(items),
                "metrics": [metric_data(facts, task, name, place) for name in facts.metrics(task)],
            }
            for task in facts.tasks
        ],
    }


def sub(facts: Facts, row: Row) -> dict[str, Any]:
    """One sub-model."""
    return {
        "name": row.spec.name,
        "official": row.official and short(row.official),
        "parent": facts.is_parent(row.spec),
        "layers": len(row.spec.kept_layers),
        "costs": [getattr(row, cost) for cost in Cost],
    }


def metric_data(facts: Facts, task: str, name: str, place: dict[str, int]) -> dict[str, Any]:
    """One figure of all sub-models: [value, low, high], [low, high] of the band; differences from the parent alike,
    with their p-values.
    """
    figures = facts.figures(task, name)
    changes = [facts.change(row.spec.name, task, name) for row in facts.subs]
    return {
        **scale(facts.scale_of(task, name)),
        "higher": all(figure.higher_is_better for figure in figures.values()),
        "values": [
            finite(figures[row.spec.name].value, figures[row.spec.name].low, figures[row.spec.name].high)
            if row.spec.name in figures else None
            for row in facts.subs
        ],
        "bands": [finite(*facts.band(row.spec.name, task, name)) for row in facts.subs],
        "changes": [
            {"span": finite(change.value, change.low, change.high), "p": p_text(finite(change.p)[0])}
            if change else None
            for change in changes
        ],
        "fronts": [[place[found] for found in facts.frontier(task, name, cost)] for cost in Cost],
    }  # fmt: skip


def scale(shown: Scale) -> dict[str, Any]:
    """How a quantity is shown."""
    return {"title": shown.title, "unit": shown.unit, "factor": shown.factor, "digits": shown.digits}


def finite(*values: float) -> list[float | None]:
    """Numbers; None for what is none, which JSON has no word for."""
    return [value if math.isfinite(value) else None for value in values]


def safe_json(value: Any) -> str:
    """JSON that no parser of HTML takes for the end of its element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in UNSAFE.items():
        text = text.replace(character, escape)
    return text
