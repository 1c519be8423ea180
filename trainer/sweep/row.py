# SPDX-License-Identifier: Apache-2.0
"""One sub-model on one task: what was found, how large the sub-model is, and of what model and data that is said."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.errors import InputError
from model.slicing.plan import Plan, StoredAs, cache_bytes
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric's value with its interval; nan where there is none, which a file has as null.

    A value has no interval where all items are alike, and nothing bounds what others would have: ``alike``.
    """

    value: float
    low: float
    high: float
    unit: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a sub-model is, from its parent's config alone.

    Args:
        parameters: Of all tensors that something computes with, towers included.
        effective_parameters: Of the text decoder without its two token tables. Google's own figures also count the
            keys and values of layers that read another's, which stand in files but which nothing computes with.
        stored_as: How weights are stored; keys and values are stored in 16 bits, or in 32 beside such weights.
        weight_bytes: Of all tensors, headers of files aside.
        kv_bytes_per_token: What one more token adds to the keys and values of a sequence, in all layers that make
            any, for as long as it is within the windows of local layers.
        flops_per_token: Floating-point operations of matrix products in the text decoder to decode the last token of
            ``flops_context_tokens``, a multiplication and an addition being two: ``model.slicing.plan.Work`` says
            what is counted. Beside Kaplan et al., arXiv 2001.08361, table 1: attention's products as there; what is
            looked up counts nothing, and the head does.
        flops_context_tokens: Tokens that have been seen then, that one included.
    """

    parameters: int
    effective_parameters: int
    stored_as: StoredAs
    weight_bytes: int
    kv_bytes_per_token: int
    flops_per_token: int
    flops_context_tokens: int


@dataclass(frozen=True, kw_only=True)
class Row(Sizes):
    """What a sweep found of one sub-model on one task, beside how large that is.

    Args:
        spec: The sub-model.
        task: The task's name.
        metrics: By name, the main one first.
        num_items: What the figures are of.
        seconds: An even share of ``seconds_together``: each batch's divided by the sub-models measured on it at once.
            What they have in common (towers, first layers) cannot be told apart; one alone would take longer.
        seconds_together: Wall time of the batches that this sub-model was measured on, for all that were with it.
        peak_memory_bytes: The most memory that was taken: on an accelerator while the task's batches were measured,
            without one by the process since it began. It is that of all that were measured at once, too.
        model: Fingerprint of the parent: its weights and its config, and an adapter on it.
        data: Fingerprint of the task: items, prompts, settings.
        seed: Of resampling.
        confidence: Of the intervals, as in 0.95.
        official: Name of the row of Google's table that this sub-model is; None if it is none.
        mmlu: The accuracy that stands there, as a share: published of pre-trained E4B, and not measured here. None if
            none does, if the parent has another shape, or if an adapter is on it; weights of its own are not told.
        versions: Of what computed it, by package.
    """

    spec: SliceSpec
    task: str
    metrics: Mapping[str, Figure]
    num_items: int
    seconds: float
    seconds_together: float
    peak_memory_bytes: int
    model: str
    data: str
    seed: int
    confidence: float
    official: str | None = None
    mmlu: float | None = None
    versions: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """What a file has one row of: the sub-model's name and the task's."""
        return self.spec.name, self.task

    def record(self) -> dict[str, Any]:
        """The row as JSON values, unrounded."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        metrics = {name: as_json(dataclasses.asdict(figure)) for name, figure in self.metrics.items()}
        return fields | {
            "spec": spec_record(self.spec), "metrics": metrics, "stored_as": self.stored_as.name,
            "versions": dict(self.versions),
        }  # fmt: skip

    @classmethod
    def of(cls, record: Mapping[str, Any], *, where: str = "a row") -> Row:
        """The row that ``record`` is.

        Args:
            record: As ``Row.record`` gives it.
            where: Where it stands, for errors: a file and a line.

        Raises:
            InputError: Something is missing, is there although no row has it, or is of another type.
        """
        try:
            check_types(record)
            row = cls(
                **{
                    **record,
                    "stored_as": StoredAs(record["stored_as"]),
                    "spec": spec_of(record["spec"]),
                    "metrics": {name: Figure(**of_json(value)) for name, value in record["metrics"].items()},
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{where}: no row of a sweep ({error!r}); it must be a line of rows.jsonl as 'matslice sweep' of this"
                " version writes it; sweep anew"
            ) from None
        return row


@lru_cache(maxsize=1024)  # a sub-model has a row for each task
def sizes_of(
    config: ModelConfig, spec: SliceSpec, *, stored_as: StoredAs = StoredAs.bf16, context_tokens: int | None = None
) -> Sizes:
    """How large the part ``spec`` of a model is.

    Args:
        config: The parent's, with its towers.
        spec: The sub-model.
        stored_as: How weights are stored.
        context_tokens: For the work per token; None is the window of local layers.

    Raises:
        SliceError: The spec does not fit the config.
        ConfigError: The model was not made for so long a context.
    """
    text = config.text
    context = min(text.sliding_window, text.max_position_embeddings) if context_tokens is None else context_tokens
    plan = Plan.of(config, SubModel(spec), context_tokens=context)
    return Sizes(
        parameters=plan.used.total,
        effective_parameters=plan.used.effective,
        stored_as=stored_as,
        weight_bytes=plan.weight_bytes[stored_as],
        kv_bytes_per_token=cache_bytes(plan.config.text, 1, stored_as.cache),
        flops_per_token=plan.work_per_token.total,
        flops_context_tokens=context,
    )


def told_alike(num_items: int) -> str:
    """What is said where a figure has no interval."""
    return f"all {num_items:,} items alike" if num_items > 1 else "of one item"


def check_types(record: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError where a value of a row is of another type than all such values are."""
    for names, kinds in (
        (("task", "model", "data"), (str,)),
        (("seconds", "seconds_together", "confidence"), (int, float)),
        (("num_items", "peak_memory_bytes", "seed"), (int,)),
        ([field.name for field in dataclasses.fields(Sizes) if field.name != "stored_as"], (int,)),
    ):
        for name in names:
            if not isinstance(record[name], kinds):
                raise TypeError(f"{name} is {record[name]!r}")


def as_json(figure: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a figure with null for what is no number: JSON has no nan."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figure.items()
    }  # fmt: skip


def of_json(figure: Mapping[str, Any]) -> dict[str, Any]:
    """What ``as_json`` was given, infinities aside, which are nan."""
    return {name: math.nan if value is None else value for name, value in figure.items()}


def spec_record(spec: SliceSpec) -> dict[str, Any]:
    """A spec as JSON values."""
    return {"name": spec.name, "kept_layers": list(spec.kept_layers), "ffn_widths": list(spec.ffn_widths)}


def spec_of(record: Mapping[str, Any]) -> SliceSpec:
    """The spec of ``spec_record``; TypeError or KeyError if it is none."""
    return SliceSpec(record["name"], tuple(record["kept_layers"]), tuple(record["ffn_widths"]))


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """The rows of a results file, each with where it stands; they are of one model and of the same data in each task.

    Raises:
        InputError: The file cannot be read, a line is no row, two rows disagree on the model, on a task's data or on
            what a sub-model's name stands for, or there are two of one sub-model on one task.
    """
    seen: dict[tuple[str, ...], tuple[str, Row]] = {}
    rows = lines_of(path)
    for where, row in rows:
        check_beside(row, where, seen)
    return rows


def lines_of(path: Path) -> list[tuple[str, Row]]:
    """The rows of a file, each with where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: rows of a sweep cannot be read ({error}); give a rows.jsonl") from None
    return [
        (f"{path}:{number}", parse(line, f"{path}:{number}"))
        for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    ]  # fmt: skip


def parse(line: str, where: str) -> Row:
    """The row of one line."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); take the line out, or sweep anew") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: {type(record).__name__} instead of a row of a sweep; take the line out")
    return Row.of(record, where=where)


def check_beside(row: Row, where: str, seen: dict[tuple[str, ...], tuple[str, Row]]) -> None:
    """Raise InputError where a row cannot stand beside those before; ``seen`` is what is said first, and where."""
    said_of = (
        (("model",), "the model (fingerprint)", row.model, lambda other: other.model),
        (("data", row.task), f"the data of task '{row.task}' (fingerprint)", row.data, lambda other: other.data),
        (
            ("spec", row.spec.name), f"what sub-model '{row.spec.name}' is", spec_record(row.spec),
            lambda other: spec_record(other.spec),
        ),
    )  # fmt: skip
    for key, what, value, of_other in said_of:
        other_where, other = seen.setdefault(key, (where, row))
        if of_other(other) != value:
            raise InputError(
                f"{where}: rows disagree on {what}: {value!r} here, {of_other(other)!r} in {other_where};"
                " rows of one file are of one sweep, so keep those of either"
            )
    other_where, _ = seen.setdefault(("row", *row.key), (where, row))
    if other_where != where:
        raise InputError(
            f"{where}: sub-model '{row.spec.name}' on task '{row.task}' stands in {other_where} already; take one out"
        )
