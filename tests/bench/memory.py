# SPDX-License-Identifier: Apache-2.0
"""What each way of making activations again keeps in memory and costs in time, on the processor.

OMP_NUM_THREADS=1 python -m tests.bench.memory --shape narrow
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.adapter.lora import AdapterConfig, attach
from model.config import ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.recompute import RecomputeConfig, TextRecompute
from tests.live_memory import kept_and_peak

RANK = 16
VOCABULARY = 2000
MIB = 1 << 20
POLICIES = {
    "none": RecomputeConfig(),
    "selective": RecomputeConfig(text=TextRecompute.selective),
    "full": RecomputeConfig(text=TextRecompute.full),
    "every 2": RecomputeConfig(text=TextRecompute.every, every=2),
    "every 3": RecomputeConfig(text=TextRecompute.every, every=3),
    "every 5": RecomputeConfig(text=TextRecompute.every, every=5),
}


@dataclass(frozen=True)
class Shape:
    """A text decoder of Gemma 3n's proportions, a fifth of its layers sparse; a batch of one row."""

    hidden: int
    width: int
    layers: int
    tokens: int

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        sparse = self.layers // 5
        return ModelConfig(text=TextConfig.parse({
            "num_hidden_layers": self.layers, "hidden_size": self.hidden, "intermediate_size": self.width,
            "head_dim": self.hidden // 8, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": self.hidden // 8,
            "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY,
            "activation_sparsity_pattern": [0.95] * sparse + [0.0] * (self.layers - sparse),
        }))  # fmt: skip


SHAPES = {
    "narrow": Shape(hidden=256, width=2048, layers=10, tokens=512),
    "wide": Shape(hidden=1024, width=8192, layers=5, tokens=256),
}


@dataclass(frozen=True)
class Cost:
    """Of forward and backward through the layers, without the head."""

    policy: str
    kept_bytes: int  # between forward and backward
    peak_bytes: int
    cpu_seconds: float


def costs(shape: Shape, repeats: int) -> Iterator[Cost]:
    """Of every policy, with an adapter on all projections in float32; the least time of several."""
    gemma = Gemma3n.build(shape.config)
    gemma.initialize(0)
    adapted = attach(gemma, AdapterConfig(rank=RANK))
    inputs = Inputs.of(torch.randint(1, VOCABULARY, (1, shape.tokens)))

    def forward() -> Tensor:
        return gemma.hidden(inputs)[0].square().mean()

    forward().backward()
    for name, policy in POLICIES.items():
        gemma.recompute = policy
        kept, peak = kept_and_peak(forward, *adapted.parameters())
        seconds = []
        for _ in range(repeats):
            begun = time.process_time()
            forward().backward()
            seconds.append(time.process_time() - begun)
        yield Cost(name, kept, peak, min(seconds))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    print("| policy | kept, MiB | peak, MiB | CPU seconds |\n|---|---|---|---|")
    for cost in costs(SHAPES[wanted.shape], wanted.repeats):
        print(
            f"| {cost.policy} | {cost.kept_bytes / MIB:.0f} | {cost.peak_bytes / MIB:.0f} | {cost.cpu_seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
