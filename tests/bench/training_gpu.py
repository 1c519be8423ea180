# SPDX-License-Identifier: Apache-2.0
"""A training step of E4B and E2B on a GPU, beside transformers with PEFT; the loss and attention alone.

    python -m tests.bench.training_gpu [--models e4b e2b] [--rounds 5] [--document FILE]

Weights are drawn on the device, nothing is downloaded. ``--scale small --device cpu`` goes the same ways in seconds,
with toys; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml

from model.config import ModelConfig
from model.layers.embedding import TablePlacement
from model.layers.kernel import AttentionKernel
from model.recompute import TextRecompute
from recipes.shape import ShapeConfig
from tests.bench.training import ROOT
from tests.bench.training_gpu_measures import (
    OUT_OF_MEMORY,
    Cost,
    attempted,
    attention_cost,
    clear,
    loss_cost,
    step_cost,
)
from tests.bench.training_gpu_report import AIMS, GpuFigures, Steps, report
from tests.bench.training_gpu_sides import Packs, Setting, Who, loss_difference
from tests.bench.training_worker import product_rate
from tests.tiny import GLOBAL, LOCAL, TINY_TEXT

DOCUMENT = ROOT / "docs" / "benchmarks" / "training_gpu.md"
DTYPE = torch.bfloat16
MIB = 1 << 20
RATE_PRODUCTS = 20
NO_GPU = 2  # exit status
TOY = dataclasses.replace(
    TINY_TEXT, layer_types=(LOCAL, GLOBAL) * 2, intermediate_size=(48,) * 4,
    activation_sparsity_pattern=(0.9, 0.0, 0.0, 0.0), num_kv_shared_layers=2,
    head_dim=16,  # the least that flex attention takes on a GPU
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Models, and what they are given."""

    name: str
    rows: int
    tokens: int  # in a row
    rate_side: int
    chunk_mib: Sequence[int]

    def config(self, model: str) -> ModelConfig:
        """The shape of a model, without towers, which text does not use; in small one toy for all."""
        if self.name == "small":
            return ModelConfig(text=TOY)
        fields = yaml.safe_load((ROOT / "conf" / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
        return ShapeConfig(
            **{key: value for key, value in fields.items() if key not in ("vision", "audio")}
        ).to_model_config()

    def packs(self, model: str) -> Packs:
        """The tokens of a step."""
        return Packs.drawn(self.config(model).text, self.rows, self.tokens)


SCALES = {
    scale.name: scale for scale in (
        Scale("full", rows=4, tokens=4096, rate_side=8192, chunk_mib=(256, 512, 1024, 2048, 4096)),
        Scale("small", rows=2, tokens=32, rate_side=128, chunk_mib=(1, 2)),
    )
}  # fmt: skip


def settings(rows: int, chunk_bytes: int, device: torch.device) -> Iterator[Setting]:
    """Ways to take a step; ``chunk_bytes`` was the fastest for scores."""
    ours, theirs, keep = partial(Setting, who=Who.ours), partial(Setting, who=Who.theirs), TextRecompute.none
    for recompute in (TextRecompute.full, TextRecompute.selective, keep):
        yield ours(recompute=recompute, rows_at_once=rows)
    yield ours(recompute=keep, rows_at_once=1)
    yield ours(rows_at_once=rows, table=TablePlacement.host)
    yield ours(rows_at_once=rows, chunk_bytes=chunk_bytes)
    yield ours(rows_at_once=rows, attention=AttentionKernel.dense)
    if device.type == "cuda":  # elsewhere it has no gradients
        yield ours(rows_at_once=rows, attention=AttentionKernel.flex)
    for at_once in (rows, 1):
        yield theirs(rows_at_once=at_once)
        yield theirs(recompute=keep, rows_at_once=at_once)
    yield theirs(rows_at_once=rows, padded=True)


class Benchmark:
    """Measures one thing after the other, and says so."""

    def __init__(self, scale: Scale, rounds: int, device: torch.device, written: Callable[[GpuFigures], None]) -> None:
        self.scale, self.rounds, self.device, self.written = scale, rounds, device, written
        packs = scale.packs("e4b")
        self.figures = GpuFigures(
            device=named(device), on_gpu=device.type == "cuda", rows=scale.rows, row_tokens=scale.tokens,
            documents=len(packs.documents), rounds=rounds, rate_side=scale.rate_side,
            rate=product_rate(device, DTYPE, scale.rate_side, RATE_PRODUCTS),
        )  # fmt: skip

    def run(self, models: Sequence[str]) -> GpuFigures:
        """All of it; what has been found is written down now and then, lest it be lost."""
        self.loss_alone()
        self.attention_alone()
        self.written(self.figures)
        for model in models:
            self.steps(model)
            self.written(self.figures)
        return self.figures

    def said(self, name: str, cost: Cost) -> Cost:
        """Tell of a measurement while others follow."""
        found = cost.problem or f"{cost.middle * 1e3:.1f} ms, {cost.peak_bytes / MIB:,.0f} MiB"
        print(f"{name}: {found}", file=sys.stderr, flush=True)
        return cost

    def loss_alone(self) -> None:
        """For several sizes of chunks, and without any."""
        text, packs = self.scale.config("e4b").text, self.scale.packs("e4b")
        for mib in (*self.scale.chunk_mib, None):
            name = "one piece (torch's cross-entropy)" if mib is None else f"{mib:,} MiB"
            chunk_bytes = None if mib is None else mib * MIB
            measure = partial(loss_cost, text, packs, chunk_bytes, self.rounds, self.device, DTYPE)
            self.figures.loss[name] = self.said(f"loss, scores in {name}", attempted(measure))

    def attention_alone(self) -> None:
        """By every kernel, in both types of layers."""
        text, packs = self.scale.config("e4b").text, self.scale.packs("e4b")
        for kernel in (AttentionKernel.documents, AttentionKernel.dense, AttentionKernel.flex):
            for kind, window in (("global", None), ("local", text.sliding_window)):
                name = f"{kernel}, {kind}"
                if kernel is AttentionKernel.flex and self.device.type != "cuda":
                    cost = Cost(problem="has gradients on a GPU only")
                else:
                    cost = attempted(
                        partial(attention_cost, text, packs, kernel, window, self.rounds, self.device, DTYPE)
                    )
                self.figures.attention[name] = self.said(f"attention, {name}", cost)

    def fastest_chunk(self) -> int:
        """The size of chunks with which the loss alone was fastest; the largest if none was measured."""
        done = [mib for mib in self.scale.chunk_mib if not self.figures.loss[f"{mib:,} MiB"].problem]
        return MIB * min(done or self.scale.chunk_mib[-1:], key=self.loss_seconds)

    def loss_seconds(self, mib: int) -> float:
        """Of the loss alone."""
        cost = self.figures.loss[f"{mib:,} MiB"]
        return float("inf") if cost.problem else cost.middle

    def steps(self, model: str) -> None:
        """Of one model, in all settings."""
        config, packs = self.scale.config(model), self.scale.packs(model)
        found = Steps(packs.flops(config.text), self.difference(config, packs))
        self.figures.models[model] = found
        for setting in dict.fromkeys(settings(self.scale.rows, self.fastest_chunk(), self.device)):
            measure = partial(step_cost, config, packs, setting, self.rounds, self.device, DTYPE)
            found.costs[setting] = self.said(f"{model}, {setting.name}", attempted(measure))

    def difference(self, config: ModelConfig, packs: Packs) -> float | None:
        """Between the sides' losses; None if they do not fit."""
        try:
            found = loss_difference(config, packs, self.device, DTYPE)
        except torch.cuda.OutOfMemoryError:
            print(f"comparing losses: {OUT_OF_MEMORY}", file=sys.stderr)
            found = None
        clear()
        return found


def named(device: torch.device) -> str:
    """What computes."""
    if device.type != "cuda":
        return "the processor"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name} with {found.total_memory / (1 << 30):.0f} GiB, CUDA {torch.version.cuda}"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the report, and write it down if it is of full size; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 …, or cpu")
    parser.add_argument("--models", nargs="+", choices=AIMS, default=list(AIMS))
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement, of which the middle one counts")
    parser.add_argument("--document", type=Path, help=f"where to write; full size: {DOCUMENT.relative_to(ROOT)}")
    wanted = parser.parse_args(words)
    device = torch.device(wanted.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "error: torch finds no CUDA device here; run this on a machine with one, or with"
            " --scale small --device cpu to go through it with toys",
            file=sys.stderr,
        )
        return NO_GPU
    if device.type == "cpu" and wanted.scale == "full":
        print("error: full size on a processor would take hours; say --scale small --device cpu", file=sys.stderr)
        return NO_GPU
    scale = SCALES[wanted.scale]
    text = scale.config("e4b").text
    command = f"python -m tests.bench.training_gpu --scale {scale.name} --rounds {wanted.rounds}"
    command += f" --models {' '.join(wanted.models)}"
    document = wanted.document or (DOCUMENT if scale.name == "full" else None)

    def page(figures: GpuFigures) -> str:
        return report(figures, command, vocab=text.vocab_size, dim=text.hidden_size)

    def write(figures: GpuFigures) -> None:
        if document is not None:
            document.parent.mkdir(parents=True, exist_ok=True)
            document.write_text(page(figures), encoding="utf-8")

    figures = Benchmark(scale, wanted.rounds, device, write).run(wanted.models)
    print(page(figures))
    return 1 if figures.failed else 0


if __name__ == "__main__":
    sys.exit(main())
