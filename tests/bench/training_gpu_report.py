# SPDX-License-Identifier: Apache-2.0
"""What the training benchmark found on a GPU, in words and tables, beside what is aimed at."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

from model.layers.embedding import TablePlacement
from tests.bench.training_gpu_measures import Cost
from tests.bench.training_gpu_sides import Setting, Who
from tests.bench.training_report import LIBRARIES

GIB = 1 << 30
LEAST_SPEED = 2.0  # times theirs
MOST_LOSS_SECONDS, MOST_LOSS_BYTES = 0.100, 3.5e9


@dataclass(frozen=True)
class Aim:
    """What a model's step should reach."""

    tokens_per_second: float
    most_bytes: int
    table: str  # how much less memory with the per-layer table on the host


AIMS = {"e4b": Aim(15_000, 40 * GIB, "at least 4.5 GB"), "e2b": Aim(28_000, 28 * GIB, "no aim")}


@dataclass
class Steps:
    """Of one model."""

    flops: float  # of a step's products
    loss_difference: float | None  # relative, between the sides
    costs: dict[Setting, Cost] = field(default_factory=dict)

    def done(self, who: Who) -> dict[Setting, Cost]:
        """What could be measured of one side."""
        return {setting: cost for setting, cost in self.costs.items() if setting.who is who and not cost.problem}

    def fastest(self, who: Who, most_bytes: float = float("inf")) -> Setting | None:
        """The fastest of a side's settings, of those that keep to so much memory if there is one."""
        done = self.done(who)
        fitting = [setting for setting, cost in done.items() if cost.peak_bytes <= most_bytes]
        return min(fitting or done, key=lambda setting: done[setting].middle, default=None)

    def saved(self) -> tuple[Setting, int] | None:
        """What keeping the table on the host saves, in bytes, and the setting that has it there."""
        done = self.done(Who.ours)
        for setting, cost in done.items():
            if setting.table is TablePlacement.host:
                for other, its in done.items():
                    if same_but_table(setting, other):
                        return setting, its.peak_bytes - cost.peak_bytes
        return None


def same_but_table(one: Setting, other: Setting) -> bool:
    """Whether two settings differ in where the table lies, and in nothing else."""
    named = [name for name in Setting.__dataclass_fields__ if name != "table"]
    return one != other and all(getattr(one, name) == getattr(other, name) for name in named)


@dataclass
class GpuFigures:
    """All that was measured; filled in as it is."""

    device: str
    on_gpu: bool
    rows: int
    row_tokens: int
    documents: int
    rate: float  # floating-point operations per second of large bfloat16 products
    rate_side: int
    rounds: int
    models: dict[str, Steps] = field(default_factory=dict)
    loss: dict[str, Cost] = field(default_factory=dict)
    attention: dict[str, Cost] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.row_tokens

    @property
    def failed(self) -> list[str]:
        """What went wrong in another way than by memory."""
        costs: list[Mapping[Setting, Cost] | Mapping[str, Cost]] = [self.loss, self.attention]
        costs += [steps.costs for steps in self.models.values()]
        return [cost.problem for group in costs for cost in group.values() if cost.problem.startswith("failed")]


PAGE = """\
# Training on a GPU: time and memory

Text decoders of the shapes of `conf/model/e4b.yaml` and `e2b.yaml` without towers, random bfloat16 weights drawn on
the device, LoRA of rank 16 on the seven projections, AdamW. A step is {rows} rows × {row_tokens:,} tokens = {tokens:,}
tokens, rows full of {documents} documents of varied lengths; ids are drawn so that few are frequent and many rare.
Ours keeps documents apart. transformers with PEFT, attention through SDPA, gets copies of the same weights. It is not
told of documents in a row: it gets the same rows as if each were one document, and, where it says so, the documents one
by one, padded to the longest of their micro-batch. "Rows × 1" is as many micro-batches as there are rows, one optimizer
step. Recomputing is gradient checkpointing of every layer on both sides; "selective" is ours alone.

Medians of {rounds} steps after up to two to warm up, one side at a time. Peak memory is {memory}.
The matmul rate is that of bfloat16 products of {rate_side:,} × {rate_side:,} matrices, {rate:.4g} TFLOP/s. A step's
products are counted once for all: forward and back to the activations, for what a token sees of its own document;
neither what is computed again nor padding counts.

{models}
## Aims

| | measured | wanted |
|---|---|---|
{aims}

## The loss alone

{tokens:,} tokens, vocabulary {vocab:,}, hidden size {dim:,}; forward and back, head frozen. "Extra" is the most memory
beyond hidden states and head.

| scores in | ms | extra |
|---|---|---|
{loss}

## Attention alone

One layer, all {rows} rows, forward and back.

| kernel, layers | ms | extra |
|---|---|---|
{attention}

Run on {date} by `{command}`; {device}, Python {python}, {libraries}.
"""

MODEL = """\
## {name}

{flops:.4g} TFLOP a step.{difference}

| | ms a step | tokens/s | of the matmul rate | peak memory | trained parameters |
|---|---|---|---|---|---|
{table}
"""


def report(figures: GpuFigures, command: str, *, vocab: int, dim: int) -> str:
    """The page, of whatever has been measured so far."""
    return PAGE.format(
        rows=figures.rows, row_tokens=figures.row_tokens, tokens=figures.tokens, documents=figures.documents,
        rounds=figures.rounds, rate=figures.rate / 1e12, rate_side=figures.rate_side, vocab=vocab, dim=dim,
        memory="what tensors took of the device at most,\nweights included (`torch.cuda.max_memory_allocated`)"
        if figures.on_gpu else "that of the process, which says little here",
        models="\n".join(section(name, steps, figures) for name, steps in figures.models.items()),
        aims="\n".join(f"| {' | '.join(row)} |" for row in aims(figures)),
        loss="\n".join(alone(name, cost) for name, cost in figures.loss.items()),
        attention="\n".join(alone(name, cost) for name, cost in figures.attention.items()),
        date=datetime.now(UTC).date().isoformat(), command=command, device=figures.device,
        python=platform.python_version(), libraries=", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    )  # fmt: skip


def section(name: str, steps: Steps, figures: GpuFigures) -> str:
    """Of one model."""
    difference = steps.loss_difference
    said = " The sides' losses could not be compared." if difference is None else (
        f" On one row as one document the sides' losses differ by {difference:.0e} of themselves, in bfloat16."
    )  # fmt: skip
    rows = []
    for setting, cost in steps.costs.items():
        if cost.problem:
            rows.append(f"| {setting.name} | {cost.problem} | | | | |")
            continue
        share = steps.flops / cost.middle / figures.rate
        rows.append(
            f"| {setting.name} | {spread(cost)} | {figures.tokens / cost.middle:,.0f} | {share:.0%}"
            f" | {cost.peak_bytes / GIB:.2f} GiB | {cost.trained:,} |"
        )
    return MODEL.format(name=name, flops=steps.flops / 1e12, difference=said, table="\n".join(rows))


def aims(figures: GpuFigures) -> Iterator[tuple[str, str, str]]:
    """What was measured beside what is wanted."""
    for name, steps in figures.models.items():
        aim = AIMS[name]
        ours, theirs = steps.fastest(Who.ours, aim.most_bytes), steps.fastest(Who.theirs)
        wanted = f"at least {aim.tokens_per_second:,.0f} at ≤ {aim.most_bytes // GIB} GiB"
        if ours is None:
            yield f"{name}: tokens/s", "not measured", wanted
            continue
        cost = steps.costs[ours]
        speed = f"{figures.tokens / cost.middle:,.0f} at {cost.peak_bytes / GIB:.2f} GiB ({ours.name})"
        yield f"{name}: tokens/s", speed, wanted
        if theirs is not None:
            ratio = f"{steps.costs[theirs].middle / cost.middle:.2f} × ({theirs.name})"
            yield f"{name}: tokens/s, of the peer's fastest", ratio, f"at least {LEAST_SPEED:g} ×"
        if (saved := steps.saved()) is not None:
            yield f"{name}: less memory with the table on the host", f"{saved[1] / 1e9:.2f} GB", aim.table
    chunked = {name: cost for name, cost in figures.loss.items() if name.endswith("iB") and not cost.problem}
    if chunked:
        fitting = [name for name, cost in chunked.items() if cost.extra_bytes <= MOST_LOSS_BYTES]
        best = min(fitting or chunked, key=lambda name: chunked[name].middle)
        cost = chunked[best]
        yield (
            "the loss alone",
            f"{cost.middle * 1e3:.1f} ms and {cost.extra_bytes / 1e9:.2f} GB (scores in {best})",
            f"at most {MOST_LOSS_SECONDS * 1e3:.0f} ms and {MOST_LOSS_BYTES / 1e9:g} GB",
        )


def alone(name: str, cost: Cost) -> str:
    """A row of an operation."""
    return f"| {name} | {cost.problem or spread(cost)} | {'' if cost.problem else f'{cost.extra_bytes / 1e9:.2f} GB'} |"


def spread(cost: Cost) -> str:
    """The median in milliseconds, and between what it lies."""
    low, middle, high = (1e3 * seconds for seconds in (min(cost.seconds), cost.middle, max(cost.seconds)))
    return f"{middle:,.1f} ({low:,.1f} to {high:,.1f})"
