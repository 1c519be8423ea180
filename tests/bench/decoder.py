# SPDX-License-Identifier: Apache-2.0
"""Forward and backward of the decoder against transformers, interleaved in one run: ratios, not seconds.

    python -m tests.bench.decoder

Also what a sub-model costs compared with its parent, beside what its matrix products say it should.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tests.torchvision_operators  # noqa: F401 - before transformers
from model.config import ModelConfig, TextConfig
from model.inputs import Inputs
from model.slicing.spec import SliceConfig, SliceSpec
from tests.parity.reference import reference_of
from tests.tiny import GLOBAL, LOCAL, tiny_model

ROUNDS = 5
BATCH, SEQ_TOKENS = 4, 256
CONFIG = ModelConfig(
    text=TextConfig(
        layer_types=((LOCAL,) * 4 + (GLOBAL,)) * 3,
        intermediate_size=(2048,) * 15,
        activation_sparsity_pattern=(0.95,) * 5 + (0.0,) * 10,
        num_kv_shared_layers=10,
        hidden_size=256,
        head_dim=64,
        num_attention_heads=4,
        sliding_window=128,
        vocab_size=4096,
        vocab_size_per_layer_input=4096,
        hidden_size_per_layer_input=32,
        laurel_rank=16,
    )
)


def main() -> None:
    """Print the table."""
    model = tiny_model(CONFIG, spread=0.1)
    reference = reference_of(model).train()
    inputs = Inputs.of(torch.randint(1, 4096, (BATCH, SEQ_TOKENS), generator=torch.Generator().manual_seed(0)))
    half = SliceSpec.resolve(SliceConfig(name="half_width", ffn_widths=[1024]), CONFIG.text)
    small = SliceSpec.resolve(
        SliceConfig(name="half_width_block_skipped", skip_layers=[5, 6, 7, 8, 9], ffn_widths=[1024]), CONFIG.text
    )

    def train_step(logits: torch.Tensor) -> None:
        F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs.ids[:, 1:].flatten()).backward()

    contestants: dict[str, Callable[[], None]] = {
        "matslice, full": lambda: train_step(model(inputs).logits),
        "transformers, full": lambda: train_step(reference(inputs.ids, use_cache=False).logits),
        f"matslice, {half.name}": lambda: train_step(model(inputs, half).logits),
        f"matslice, {small.name}": lambda: train_step(model(inputs, small).logits),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in track(range(ROUNDS + 1), "rounds"):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first round warms up

    table = Table(title=f"training step, {BATCH} x {SEQ_TOKENS} tokens, float32, {torch.get_num_threads()} threads")
    for heading in ("", "seconds", "ratio to matslice, full", "matrix products say"):
        table.add_column(heading)
    expected = {
        f"matslice, {spec.name}": products(spec) / products(SliceSpec.full(CONFIG.text)) for spec in (half, small)
    }
    for name, time_taken in middle.items():
        share = f"{expected[name]:.2f}" if name in expected else ""
        table.add_row(name, f"{time_taken:.3f}", f"{time_taken / middle['matslice, full']:.2f}", share)
    Console().print(table)


def products(spec: SliceSpec) -> int:
    """Multiplications per token of the layers' and the head's matrices."""
    text = CONFIG.text
    dim, ple, heads = text.hidden_size, text.hidden_size_per_layer_input, text.num_attention_heads * text.head_dim
    keys = 2 * text.num_key_value_heads * text.head_dim
    layers = sum(
        3 * dim * width + 2 * dim * heads + keys * dim * (layer < text.first_shared_layer)
        + 2 * dim * (text.laurel_rank + ple)
        for layer, width in zip(spec.kept_layers, spec.ffn_widths, strict=True)
    )  # fmt: skip
    return layers + dim * text.vocab_size + 2 * (text.altup_num_inputs - 1) * dim * dim + dim * ple * 15


if __name__ == "__main__":
    main()
