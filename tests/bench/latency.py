# SPDX-License-Identifier: Apache-2.0
"""How near a sum of measured layer times comes to what whole sub-models take.

    python -m tests.bench.latency [--threads N] [--repeats N] [--specs N] [--clock wall|cpu] [--document FILE]

A Gemma 3n of 12 layers with random weights (300 MB) decodes a token behind 512 others, and takes in 256 at once. Its
layers are timed as a search by latency times them; then sub-models drawn by chance are timed whole, in turns with the
parent. How far the two halves of those rounds differ tells what no prediction can do better than.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from model.config import LayerType, ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from trainer.checkpoint import write_whole
from trainer.search.cost import NANOSECONDS
from trainer.search.latency import LatencyConfig, Stopwatch, latency_costs
from trainer.search.space import Point, Space, SpaceConfig

LOCAL, GLOBAL = LayerType.sliding_attention, LayerType.full_attention
WIDTHS = [1024, 2048, 4096]
CONFIG = TextConfig(
    layer_types=(LOCAL, LOCAL, LOCAL, GLOBAL) * 3,
    intermediate_size=(WIDTHS[-1],) * 12,
    activation_sparsity_pattern=(0.95,) * 3 + (0.0,) * 9,
    num_kv_shared_layers=4,
    hidden_size=512,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    sliding_window=256,
    max_position_embeddings=2048,
    vocab_size=16384,
    vocab_size_per_layer_input=16384,
    hidden_size_per_layer_input=64,
    laurel_rank=32,
)
SPACE = SpaceConfig(widths=WIDTHS, skip=[[8], [9], [10]])
RUNS = {
    "a token behind 512": LatencyConfig(context_tokens=512, new_tokens=1),
    "256 tokens at once": LatencyConfig(context_tokens=0, new_tokens=256),
}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Agreement:
    """How near one list of times is to another.

    Args:
        r2: Share of the spread that is told.
        median_error: Of the relative errors, without sign.
        worst_error: The largest of them.
        bias: The median of the relative errors, with sign.
        rank: Spearman's correlation.
    """

    r2: float
    median_error: float
    worst_error: float
    bias: float
    rank: float

    @classmethod
    def of(cls, told: Sequence[float], measured: Sequence[float]) -> Agreement:
        """Of what was foretold with what was measured."""
        one, other = np.array(told), np.array(measured)
        relative = one / other - 1
        apart = np.argsort(np.argsort(one)) - np.argsort(np.argsort(other))  # of ranks; no two times are equal
        return cls(
            r2=1 - float(np.mean((one - other) ** 2) / np.var(other)),
            median_error=float(np.median(np.abs(relative))), worst_error=float(np.abs(relative).max()),
            bias=float(np.median(relative)), rank=1 - 6 * float((apart**2).sum()) / (len(one) * (len(one) ** 2 - 1)),
        )  # fmt: skip

    @property
    def line(self) -> str:
        """As cells of a table."""
        return f"{self.r2:.3f} | {self.rank:.3f} | {self.median_error:.1%} | {self.worst_error:.1%} | {self.bias:+.1%}"


@dataclass(frozen=True)
class Measured:
    """One kind of run.

    Args:
        seconds: Of sub-models, the last of which is the parent; medians.
        told: What sums of layers' times say of each.
        halves: Medians of every other round, and of the others.
    """

    name: str
    seconds: list[float]
    told: list[float]
    halves: tuple[list[float], list[float]]

    def lines(self) -> Iterator[str]:
        """Of a table."""
        span = f"{1000 * min(self.seconds):.1f} to {1000 * max(self.seconds):.1f} ms"
        yield f"| {self.name} | {span} | sum of layers | {Agreement.of(self.told, self.seconds).line} |"
        yield f"| | | half of the rounds by the others | {Agreement.of(*self.halves).line} |"


def drawn(space: Space, count: int) -> list[Point]:
    """So many points by chance, and the parent."""
    chance = random.Random(0)
    return [*(space.draw(chance) for _ in range(count)), space.top]


def measure(
    model: Gemma3n, name: str, written: LatencyConfig, *, count: int, clock: Callable[[], float]
) -> Measured:  # fmt: skip
    """Time layers, and then whole sub-models."""
    watch, space = Stopwatch(model, written, clock), Space.of(SPACE, CONFIG)
    costs = latency_costs(space, watch)
    points = drawn(space, count)
    runs = [watch.run(space.spec(point)) for point in points]
    for run in runs:
        run()  # warm
    times = np.array([[run() for run in runs] for _ in range(2 * written.repeats)])
    halves = np.median(times[0::2], axis=0).tolist(), np.median(times[1::2], axis=0).tolist()
    return Measured(
        name=name, seconds=[statistics.median(column) for column in times.T.tolist()],
        told=[costs.at(point) / NANOSECONDS for point in points], halves=halves,
    )  # fmt: skip


def main() -> None:
    """Measure, print, and write the document if one is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="runs of which a search takes the median")
    parser.add_argument("--specs", type=int, default=20)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: only time that the process had")
    parser.add_argument("--document", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Gemma3n.build(ModelConfig(text=CONFIG))
    model.initialize(0)
    model.eval()
    before = os.getloadavg()[0]
    found = []
    for name, run in RUNS.items():
        written = dataclasses.replace(run, repeats=options.repeats)
        found.append(measure(model, name, written, count=options.specs, clock=CLOCKS[options.clock]))
        for line in found[-1].lines():
            Console(width=200).print(line)
    load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
    command = f"python -m tests.bench.latency --threads {options.threads} --repeats {options.repeats}"
    if options.document is not None:
        write_whole(options.document, page(found, f"{command} --specs {options.specs} --clock {options.clock}", load))


PAGE = """\
# Latency of sub-models as a sum over layers

A search by latency times every layer at each of its widths, once, and takes a sub-model to cost the sum. Here {specs}
sub-models drawn by chance, and the parent, are timed whole, in turns, and compared with that sum. R² and the rank
correlation (Spearman) are over all of them; errors are relative to what was measured. What a search picks is timed
whole before it is picked, so a bias leaves budgets unused or makes it try more sub-models; it breaks no budget.

| run | whole sub-models | foretold by | R² | rank | median error | worst error | bias |
| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |
{table}

Half of the rounds by the others says what noise is left: no sum can be expected to do better.

`{command}`, {date}; load of the machine {load} on {cores} cores; Python {python}, torch {torch}.
"""


def page(found: Sequence[Measured], command: str, load: str) -> str:
    """The document."""
    return PAGE.format(
        specs=len(found[0].seconds) - 1, table="\n".join(line for one in found for line in one.lines()),
        command=command, load=load, cores=os.cpu_count(), date=datetime.now(UTC).date(),
        python=platform.python_version(), torch=version("torch"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
