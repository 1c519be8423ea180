# SPDX-License-Identifier: Apache-2.0
"""Every sub-model on every task with one model in memory: batch by batch, and from where a stopped sweep ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from model.config import ModelConfig
from model.errors import ConfigError, InputError
from model.slicing.official import Official
from model.slicing.plan import StoredAs
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from trainer.evaluation.engine import Engine
from trainer.evaluation.statistics import (
    Difference,
    Interval,
    Sample,
    StatisticsConfig,
    band,
    differences,
    interval,
    samples,
)
from trainer.evaluation.task import Task
from trainer.metrics import peak_memory_bytes
from trainer.sweep.items import Items, Measurement
from trainer.sweep.row import Figure, Row, sizes_of
from trainer.sweep.store import Store

SPECS_AT_ONCE, ITEMS_AT_ONCE = 16, 50_000  # that are resampled together, of which all that was found is in memory


@dataclass(frozen=True, kw_only=True)
class About:
    """What rows say beside what is found.

    Args:
        config: The parent's, with all its towers, loaded or not.
        stored_as: How weights are stored, for their bytes.
        context_tokens: For the work per token; None is the window of local layers.
        officials: Google's sub-models as parts of the parent.
        versions: Of what computes, by package.
    """

    config: ModelConfig
    stored_as: StoredAs = StoredAs.bf16
    context_tokens: int | None = None
    officials: Sequence[Official] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a sweep is: so many of a task's batches are measured under all sub-models that want it."""

    task: str
    task_number: int  # from 1
    num_tasks: int
    batches_done: int
    num_batches: int
    num_specs: int  # that the task is measured under; none if all rows were there


def check(config: ModelConfig, tasks: Sequence[Task], specs: Sequence[SliceSpec]) -> None:
    """Refuse what could not be swept, before anything is loaded.

    Raises:
        ConfigError: There is no task or no sub-model, two have one name, or a task needs a tower that is not there.
        SliceError: A sub-model is no part of the parent.
        InputError: A task has no items, or an item that is in no batch or in two.
    """
    for what, names in (("task", [task.name for task in tasks]), ("sub-model", [spec.name for spec in specs])):
        if not names:
            raise ConfigError(f"sweep: there is no {what}; name at least one")
        if twice := [name for name, number in Counter(names).items() if number > 1]:
            raise ConfigError(f"sweep: there are two {what}s '{twice[0]}'; rename one, or leave it out")
    for spec in specs:
        spec.check(config.text)
    for task in tasks:
        if missing := sorted(task.modalities - {*config.modalities, Modality.text}):
            raise ConfigError(
                f"task '{task.name}' needs the {' and '.join(missing)} tower, which this checkpoint has not (it has"
                f" {', '.join(config.modalities)}); leave the task out, or take a checkpoint with it"
            )
        if not task.items:
            raise InputError(f"task '{task.name}' has no items; give it a split that has some, or leave it out")
        if sorted(item for batch in task.batches for item in batch) != list(range(len(task.items))):
            raise InputError(f"task '{task.name}': its batches must have each of its {len(task.items)} items once")


def sweep(
    engine: Engine, tasks: Sequence[Task], specs: Sequence[SliceSpec], store: Store, about: About,
    progress: Callable[[Progress], None] | None = None,
) -> list[Row]:  # fmt: skip
    """Measure what is not measured yet, and give the rows of all: task by task, in the order of ``specs``.

    Finished rows are not redone. Sub-models that were added later are measured alone; figures do not depend on who
    else is measured, nor on what was interrupted.

    Raises:
        ConfigError, SliceError, InputError: As of ``check``, and of a task's media.
        CheckpointError: Results cannot be written, or those of a stopped sweep are damaged.
    """
    check(about.config, tasks, specs)
    for number, task in enumerate(tasks, start=1):
        wanting = [spec for spec in specs if (spec.name, task.name) not in store.rows]
        if wanting:
            items = store.items(task)
            for batch in range(len(task.batches)):
                measure(engine, task, wanting, batch, items)
                if progress is not None:
                    progress(progress_of(number, tasks, batch + 1, wanting))
            store.add(rows_of(task, wanting, items, store, about))
        elif progress is not None:
            progress(progress_of(number, tasks, len(task.batches), wanting))
    return [store.rows[spec.name, task.name] for task in tasks for spec in specs]


def progress_of(number: int, tasks: Sequence[Task], done: int, wanting: Sequence[SliceSpec]) -> Progress:
    """How far a sweep is with the task of this number."""
    task = tasks[number - 1]
    return Progress(
        task=task.name, task_number=number, num_tasks=len(tasks), batches_done=done, num_batches=len(task.batches),
        num_specs=len(wanting),
    )  # fmt: skip


def measure(engine: Engine, task: Task, wanting: Sequence[SliceSpec], number: int, items: Items) -> None:
    """Measure one batch under those sub-models that it is not measured under, and put it on the disk."""
    due = [spec for spec in wanting if not items.has(spec, number)]
    if not due:
        return
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    batch, began = task.batches[number], time.perf_counter()
    found = task.measure(engine, due, batch)
    assert [len(values) for values in found] == [len(batch)] * len(due), f"task '{task.name}' lost items"
    items.add(
        Measurement(
            batch=number, seconds=time.perf_counter() - began, peak_memory_bytes=peak_memory_bytes(engine.device),
            found={spec.name: values for spec, values in zip(due, found, strict=True)},
        )
    )  # fmt: skip


def rows_of(task: Task, specs: Sequence[SliceSpec], items: Items, store: Store, about: About) -> list[Row]:
    """The rows of sub-models that all of a task was measured under."""
    statistics = store.identity.statistics
    rows = []
    for spec, sampled in samples_of(task, specs, items, statistics):
        measured = items.measured[spec.name].values()
        figures = {}
        for metric in task.metrics:
            found = interval(sampled[metric.name], confidence=statistics.confidence)
            figures[metric.name] = Figure(
                **asdict(found), unit=metric.unit, higher_is_better=metric.higher_is_better
            )  # fmt: skip
        published = official_of(spec, about.officials)
        rows.append(
            Row(
                spec=spec,
                task=task.name,
                metrics=figures,
                num_items=len(task.items),
                **vars(sizes_of(about.config, spec, stored_as=about.stored_as, context_tokens=about.context_tokens)),
                seconds=sum(batch.seconds / batch.together for batch in measured),
                seconds_together=sum(batch.seconds for batch in measured),
                peak_memory_bytes=max(batch.peak_memory_bytes for batch in measured),
                model=store.identity.model,
                data=task.fingerprint,
                seed=statistics.seed,
                confidence=statistics.confidence,
                official=published and published.name,
                mmlu=published.accuracy if published is not None and published.is_itself else None,
                versions=about.versions,
            )
        )
    return rows


def samples_of(
    task: Task, specs: Sequence[SliceSpec], items: Items, statistics: StatisticsConfig
) -> Iterator[tuple[SliceSpec, dict[str, Sample]]]:
    """The figures of each sub-model by the metric's name; what was found of items is in memory for a few at a time.

    All are of the same draws, whoever is drawn together.
    """
    at_once = max(1, min(SPECS_AT_ONCE, ITEMS_AT_ONCE // len(task.items)))
    for start in range(0, len(specs), at_once):
        some = specs[start : start + at_once]
        sampled = samples(task.metrics, {spec.name: items.found(spec) for spec in some}, statistics, task=task.name)
        for spec in some:
            yield spec, {name: by_spec[spec.name] for name, by_spec in sampled.items()}


def official_of(spec: SliceSpec, officials: Sequence[Official]) -> Official | None:
    """Which of Google's sub-models this is: the one of its name, or else the first that is the same part."""
    same = [one for one in officials if one.spec.shape == spec.shape]
    return next((one for one in same if one.spec.name == spec.name), same[0] if same else None)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sub-models of one task beside each other, by the metric's name and the sub-model's.

    Args:
        differences: What each has more than the one they are compared with, which itself is left out; p-values are
            adjusted for the number of them in each metric.
        bands: Simultaneous over all of them; see ``trainer.evaluation.statistics.band``.
    """

    differences: Mapping[str, Mapping[str, Difference]]
    bands: Mapping[str, Mapping[str, Interval]]


def compare(task: Task, specs: Sequence[SliceSpec], store: Store, *, parent: SliceSpec) -> Comparison:
    """Compare the finished sub-models of a task with ``parent``, which is one of them, item by item.

    Bands and p-values are of all at once, so for each sub-model and metric some draws and items (8 bytes each, 2,000
    and as many as the task has) are in memory, beside what ``samples_of`` takes.
    """
    items, statistics = store.items(task), store.identity.statistics
    sampled: dict[str, dict[str, Sample]] = {metric.name: {} for metric in task.metrics}
    for spec, figures in samples_of(task, specs, items, statistics):
        for name, sample in figures.items():
            sampled[name][spec.name] = sample

    return Comparison(
        differences={
            metric: differences(
                {name: sample for name, sample in by_name.items() if name != parent.name},
                by_name[parent.name],
                confidence=statistics.confidence,
            )
            for metric, by_name in sampled.items()
        },
        bands={
            metric: dict(zip(by_name, band(list(by_name.values()), confidence=statistics.confidence), strict=True))
            for metric, by_name in sampled.items()
        },
    )
