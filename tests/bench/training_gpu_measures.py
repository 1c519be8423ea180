# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a step, of the loss alone and of attention alone; what does not fit is said, not fatal."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig, TextConfig
from model.layers.kernel import AttentionKernel
from model.text.context import kernel_of
from tests.bench.training_gpu_sides import Packs, Setting, optimizer_of, side_of
from tests.bench.training_worker import forget_peak, now, peak_bytes
from trainer.loss import linear_cross_entropy_sum

OUT_OF_MEMORY = "out of memory"
WARM_UP = 2  # rounds that are not counted; fewer than those that are


@dataclass(frozen=True)
class Cost:
    """What was measured, or why nothing was."""

    seconds: Sequence[float] = ()  # of each round
    peak_bytes: int = 0
    before_bytes: int = 0  # held when the first round that counts began
    trained: int = 0  # parameters
    problem: str = ""

    @property
    def middle(self) -> float:
        """The median round, in seconds."""
        return statistics.median(self.seconds)

    @property
    def extra_bytes(self) -> int:
        """The most memory beyond what was held before."""
        return self.peak_bytes - self.before_bytes


def attempted(measure: Callable[[], Cost]) -> Cost:
    """What a measurement found; one that fails costs only itself."""
    try:
        found = measure()
    except torch.cuda.OutOfMemoryError:
        found = Cost(problem=OUT_OF_MEMORY)
    except RuntimeError as error:
        found = Cost(problem=f"failed: {' '.join(str(error).split())[:200]}")
    clear()  # only here: an exception at hand keeps what its frames hold
    return found


def clear() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rounds_of(work: Callable[[], object], rounds: int, device: torch.device, *, trained: int = 0) -> Cost:
    """Time of every round, and the most memory."""
    for _ in range(min(WARM_UP, rounds - 1)):
        work()
    now(device)
    forget_peak(device)
    before, seconds = held_bytes(device), []
    for _ in range(rounds):
        start = now(device)
        work()
        seconds.append(now(device) - start)
    return Cost(seconds, peak_bytes(device), before, trained)


def held_bytes(device: torch.device) -> int:
    """Memory in use: of this process, or of the device where there is one."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


def step_cost(
    config: ModelConfig, packs: Packs, setting: Setting, rounds: int, device: torch.device, dtype: torch.dtype
) -> Cost:
    """Of a whole step: forward, backward, optimizer."""
    side = side_of(config, packs, setting, device, dtype)
    clear()  # theirs was copied from ours
    optimizer = optimizer_of(side)

    def step() -> None:
        side.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    trained = sum(p.numel() for p in side.module.parameters() if p.requires_grad)
    return rounds_of(step, rounds, device, trained=trained)


def whole_loss(hidden: Tensor, weight: Tensor, labels: Tensor, *, softcap: float) -> Tensor:
    """The loss as it is written down where nobody minds the memory: all scores, then all of them in float32."""
    scores = torch.tanh(F.linear(hidden, weight) / softcap) * softcap
    return F.cross_entropy(scores.float().flatten(0, 1), labels.flatten(), reduction="sum")


def loss_cost(
    text: TextConfig, packs: Packs, chunk_bytes: int | None, rounds: int, device: torch.device, dtype: torch.dtype
) -> Cost:
    """Of the loss and the hidden states' gradient alone, head frozen; None: with all scores at once."""
    hidden = torch.randn(*packs.ids.shape, text.hidden_size, device=device, dtype=dtype).requires_grad_()
    weight = torch.randn(text.vocab_size, text.hidden_size, device=device, dtype=dtype).mul_(text.initializer_range)
    labels = packs.ids.to(device)

    def work() -> None:
        cap = text.final_logit_softcapping
        if chunk_bytes is None:
            whole_loss(hidden, weight, labels, softcap=cap).backward()
        else:
            linear_cross_entropy_sum(hidden, weight, labels, softcap=cap, chunk_bytes=chunk_bytes).backward()
        hidden.grad = None

    return rounds_of(work, rounds, device)


def attention_cost(
    text: TextConfig, packs: Packs, attention: AttentionKernel, window: int | None, rounds: int, device: torch.device,
    dtype: torch.dtype,
) -> Cost:  # fmt: skip
    """Of one layer's attention alone, forward and back."""
    rows, tokens = packs.ids.shape
    inputs = packs.inputs.to(device)
    kernel = kernel_of(attention, inputs, inputs.mask, window)  # made once for all layers of a type
    queries, keys, values = (
        torch.randn(rows, heads, tokens, text.head_dim, device=device, dtype=dtype)
        .mul_(text.head_dim**-0.5)
        .requires_grad_()
        for heads in (text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads)
    )
    outer = torch.randn_like(queries)

    def work() -> None:
        torch.autograd.grad(kernel(queries, keys, values), (queries, keys, values), outer)

    return rounds_of(work, rounds, device)
