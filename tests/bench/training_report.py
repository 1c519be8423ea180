# SPDX-License-Identifier: Apache-2.0
"""What the training benchmark found, in words and tables: medians of steps, and the ratios that are promised."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

LEAST_SPEED, AIMED_SPEED = 1.5, 2.5  # times theirs
MOST_MEMORY = 0.40  # of theirs
LIBRARIES = ("torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class Side:
    """What one side's steps took."""

    seconds: Sequence[float]  # of each
    peak_bytes: int  # the most memory its process held since it had loaded
    trained: int  # parameters
    phases: Mapping[str, float]  # seconds of a further step's parts
    profile: Mapping[str, float]  # shares of a further step's time, by operation

    @property
    def middle(self) -> float:
        """The median step, in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Figures:
    """All that was measured."""

    scale: str
    rows: int
    tokens: int  # in a row
    flops: float  # of a step's products
    rates: Sequence[float]  # floating-point operations per second of a product of large matrices
    threads: int
    load: tuple[float, float]  # of the machine, before and after
    loss_difference: float  # relative, before the first step
    sides: Mapping[str, Side]

    @property
    def speed(self) -> float:
        """Ours, in theirs: the tokens are the same."""
        return self.sides["theirs"].middle / self.sides["ours"].middle

    @property
    def memory(self) -> float:
        """Ours, as a share of theirs."""
        return self.sides["ours"].peak_bytes / self.sides["theirs"].peak_bytes

    def share(self, side: str) -> float:
        """Of the machine's rate of products, in the median step."""
        return self.flops / self.sides[side].middle / statistics.median(self.rates)


PAGE = """\
# Training: time and memory

## On a processor

A decoder of ten layers in E4B's pattern (hidden size 256, feed-forward width 2,048, per-layer embeddings of 32,
vocabulary 262,400), random float32 weights, LoRA of rank 16 on the seven projections, AdamW. Beside it transformers
with PEFT, attention through SDPA, as their guides say. Both load the same checkpoint and get the same batch of
{rows} × {tokens} tokens; before the first step their losses agree to {difference:.0e}. Each side is a process of its
own with {threads} threads and takes a step in turn, {rounds} times, after one to warm up: the median, and the lowest
and the highest.

| | seconds a step | tokens/s | peak memory | of the matmul rate | trained parameters |
|---|---|---|---|---|---|
{table}

| ours, of theirs | measured | wanted |
|---|---|---|
| tokens/s | {speed:.2f} × | at least {least} ×; aim {aim} × |
| peak memory | {memory:.2f} × | at most {most:.2f} × |

Peak memory is all that the process held at most (VmHWM, with Python and libraries), counted from when the model was
loaded. The matmul rate, {rate:.0f} GFLOP/s, is that of float32 products of 2,048 × 2,048 matrices, measured between the
steps. A step's products come to {flops:.0f} GFLOP, as there is no gradient of frozen weights: {head}.

Where a step's seconds go:

| ours | | theirs | |
|---|---|---|---|
{phases}

The operations that take most of the processor's time, as shares of it:

| ours | | theirs | |
|---|---|---|---|
{profiles}

Run on {date} by `{command}`; Linux {kernel}, Python {python}, {libraries}.
{cores} processor cores; load of the machine {before:.1f} before and {after:.1f} after (on a quiet one at most about
{threads}).
"""


def report(figures: Figures, command: str, *, head_share: float) -> str:
    """The page; ``head_share`` of the step's products are the head's."""
    tokens = figures.rows * figures.tokens
    lines = [
        f"| {name} | {spread(side.seconds)} | {tokens / side.middle:,.0f} | {side.peak_bytes / 1e9:.2f} GB"
        f" | {figures.share(name):.0%} | {side.trained:,} |"
        for name, side in figures.sides.items()
    ]
    ours, theirs = figures.sides["ours"], figures.sides["theirs"]
    return PAGE.format(
        rows=figures.rows,
        tokens=figures.tokens,
        difference=figures.loss_difference,
        threads=figures.threads,
        rounds=len(ours.seconds),
        table="\n".join(lines),
        speed=figures.speed,
        least=LEAST_SPEED,
        aim=AIMED_SPEED,
        memory=figures.memory,
        most=MOST_MEMORY,
        rate=statistics.median(figures.rates) / 1e9,
        flops=figures.flops / 1e9,
        head=f"{head_share:.0%} of them are the head's",
        phases=beside(
            [(name, f"{seconds:.2f} s") for name, seconds in ours.phases.items()],
            [(name, f"{seconds:.2f} s") for name, seconds in theirs.phases.items()],
        ),
        profiles=beside(
            [(f"`{name}`", f"{share:.1%}") for name, share in ours.profile.items()],
            [(f"`{name}`", f"{share:.1%}") for name, share in theirs.profile.items()],
        ),
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        kernel=platform.release().split("-")[0],
        python=platform.python_version(),
        libraries=", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        cores=os.cpu_count(),
        before=figures.load[0],
        after=figures.load[1],
    )


def beside(left: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]]) -> str:
    """Rows of two tables in one."""
    length = max(len(left), len(right))
    padded = [[*rows, *[("", "")] * (length - len(rows))] for rows in (left, right)]
    return "\n".join(f"| {a} | {b} | {c} | {d} |" for (a, b), (c, d) in zip(*padded, strict=True))


def spread(seconds: Sequence[float]) -> str:
    """The median, and between what it lies."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
