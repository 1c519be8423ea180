# SPDX-License-Identifier: Apache-2.0
"""A training step of ours against transformers with PEFT: the same weights, batch and adapter, step by step in turn.

    python -m tests.bench.training [--scale small] [--rounds 5] [--compile] [--document FILE]

Each side is a process of its own, which waits while the other computes. Linux only; three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from model.checkpoint.saving import save
from model.config import ModelConfig, TextConfig
from tests.bench.training_report import Figures, Side, report
from tests.tiny import GLOBAL, LOCAL, tiny_model

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "benchmarks" / "training.md"
SAME_LOSS = 1e-5  # relative; float32 sums in another order
LAYERS = 10


@dataclass(frozen=True)
class Scale:
    """A model's size and its batch's."""

    name: str
    config: ModelConfig
    rows: int
    tokens: int  # in a row

    @property
    def flops(self) -> float:
        """Floating-point operations of the products of one step, which any implementation has to do.

        Forward, and back to the activations: the weights are frozen. Factors of the adapter, and of AltUp's
        coefficients, are left out: less than a hundredth of a part.
        """
        text, tokens = self.config.text, self.rows * self.tokens
        return 2 * 2.0 * tokens * (products(text) + attended(text, self.tokens))

    @property
    def head_flops(self) -> float:
        """Those of the head, forward and back."""
        return 2 * 2.0 * self.rows * self.tokens * self.config.text.hidden_size * self.config.text.vocab_size


def products(text: TextConfig) -> int:
    """Multiplications per token of the layers' matrices and the head."""
    dim, ple, heads = text.hidden_size, text.hidden_size_per_layer_input, text.num_attention_heads * text.head_dim
    keys = 2 * text.num_key_value_heads * text.head_dim
    layers = sum(
        3 * dim * width + 2 * dim * heads + keys * dim * (layer < text.first_shared_layer)
        + 2 * dim * (text.laurel_rank + ple)
        for layer, width in enumerate(text.intermediate_size)
    )  # fmt: skip
    projections = 2 * (text.altup_num_inputs - 1) * dim * dim + dim * ple * text.num_hidden_layers
    return layers + projections + dim * text.vocab_size


def attended(text: TextConfig, tokens: int) -> int:
    """Multiplications per token of scores and values, each token seeing all of its row."""
    return 2 * tokens * text.num_attention_heads * text.head_dim * text.num_hidden_layers


def shape(*, hidden: int, width: int, vocab: int) -> ModelConfig:
    """Ten layers in E4B's pattern, half of them readers."""
    return ModelConfig(
        text=TextConfig(
            layer_types=((LOCAL,) * 4 + (GLOBAL,)) * (LAYERS // 5),
            intermediate_size=(width,) * LAYERS,
            activation_sparsity_pattern=(0.95,) * 3 + (0.0,) * (LAYERS - 3),
            num_kv_shared_layers=LAYERS // 2,
            hidden_size=hidden,
            head_dim=hidden // 4,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=256,
            vocab_size=vocab,
            vocab_size_per_layer_input=vocab - vocab // 1025,  # 262,144 of 262,400
            hidden_size_per_layer_input=32,
            laurel_rank=16,
        )
    )


SCALES = {
    scale.name: scale for scale in (
        Scale("full", shape(hidden=256, width=2048, vocab=262_400), rows=2, tokens=512),
        Scale("small", shape(hidden=64, width=128, vocab=4100), rows=2, tokens=64),
    )
}  # fmt: skip


class Contestant:
    """A worker process, told what to do."""

    def __init__(self, side: str, directory: Path, scale: Scale, *, threads: int, more: Sequence[str] = ()) -> None:
        command = [
            sys.executable, "-m", "tests.bench.training_worker", side, str(directory), "--rows", str(scale.rows),
            "--tokens", str(scale.tokens), *more,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip

    def told(self, command: str) -> dict[str, Any]:
        """What it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: a worker ended with status {self.process.wait()}; what it said is above")
        return json.loads(line)

    def end(self) -> None:
        """There is nothing more to do."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def contestants(
    directory: Path, scale: Scale, *, threads: int, more: Sequence[str] = ()
) -> Iterator[Mapping[str, Contestant]]:
    """Ours and theirs, with a model loaded each, and ended in any case."""
    both = {side: Contestant(side, directory, scale, threads=threads, more=more) for side in ("ours", "theirs")}
    try:
        yield both
    finally:
        for contestant in both.values():
            contestant.end()


def benchmark(scale: Scale, rounds: int, threads: int, more: Sequence[str] = ()) -> Figures:
    """All figures of one scale."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "parent"
        save(tiny_model(scale.config, spread=0.1), directory)
        with contestants(directory, scale, threads=threads, more=more) as sides:
            return measured(sides, scale, rounds, threads)


def measured(sides: Mapping[str, Contestant], scale: Scale, rounds: int, threads: int) -> Figures:
    """Let the sides take steps in turn."""
    sizes = {name: side.told("size") for name, side in sides.items()}
    ours, theirs = sizes["ours"]["loss"], sizes["theirs"]["loss"]
    if not abs(ours - theirs) <= SAME_LOSS * abs(theirs):
        sys.exit(f"error: the loss is {ours} here and {theirs} there; they do not compute the same")
    load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    rates = []
    for _ in track(range(rounds + 1), "rounds"):
        for name, side in sides.items():
            seconds[name].append(side.told("step")["seconds"])
        rates.append(sides["ours"].told("rate")["per_second"])
    peaks = {name: side.told("peak")["bytes"] for name, side in sides.items()}  # before a profile adds to it
    return Figures(
        scale=scale.name, rows=scale.rows, tokens=scale.tokens, flops=scale.flops, rates=rates[1:], threads=threads,
        load=(load, os.getloadavg()[0]), loss_difference=abs(ours - theirs) / abs(theirs),
        sides={
            name: Side(
                seconds=seconds[name][1:],  # the first step warms up
                peak_bytes=peaks[name], trained=sizes[name]["trained"], phases=side.told("phases"),
                profile=side.told("profile"),
            )
            for name, side in sides.items()
        },
    )  # fmt: skip


def main() -> None:
    """Measure, print the report, and write it down if it is of full size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side, of which the middle one counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    parser.add_argument("--compile", action="store_true", help="our layers, as trainer.compile does; written nowhere")
    parser.add_argument("--document", type=Path, help=f"where to write; full size: {DOCUMENT.relative_to(ROOT)}")
    wanted = parser.parse_args()
    more = ["--compile"] if wanted.compile else []
    figures = benchmark(SCALES[wanted.scale], wanted.rounds, wanted.threads, more)
    scale = SCALES[wanted.scale]
    command = ["python -m tests.bench.training --scale", wanted.scale, "--rounds", str(wanted.rounds), *more]
    text = report(figures, " ".join(command), head_share=scale.head_flops / scale.flops)
    print(text)
    if document := wanted.document or (DOCUMENT if wanted.scale == "full" and not more else None):
        document.parent.mkdir(parents=True, exist_ok=True)
        document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
