# SPDX-License-Identifier: Apache-2.0
"""One side of the training benchmark, ours or the peer's, in a process of its own: a step whenever it is told to.

    python -m tests.bench.training_worker ours DIRECTORY --rows 2 --tokens 512

Reads commands from its standard input, one a line, and answers each with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100
MATRIX_SIDE, PRODUCTS = 2048, 4  # of one measurement of the rate
MANY_OPS = 14  # named in a profile


class Ours:
    """Our model with our adapter and loss."""

    def __init__(self, directory: Path, ids: Tensor, dtype: torch.dtype, *, compiled: bool = False) -> None:
        from model.adapter.lora import AdapterConfig, attach, base_of
        from model.checkpoint.load import load
        from model.inputs import Inputs
        from model.slicing.spec import SliceSpec
        from trainer import step

        self.loss_seconds = 0.0  # of the last loss with its gradient, without the decoder
        operation = step.linear_cross_entropy_sum

        def timed(*arguments: Any, **settings: Any) -> Tensor:
            start = now(ids.device)
            made = operation(*arguments, **settings)
            self.loss_seconds = now(ids.device) - start
            return made

        step.linear_cross_entropy_sum = timed
        model = attach(load(directory, dtype=dtype, device=ids.device), AdapterConfig(rank=RANK, alpha=ALPHA))
        if compiled:
            base_of(model).model.language_model.compile_layers()
        self.spec = SliceSpec.full(base_of(model).config.text)
        self.inputs = Inputs.of(ids)
        self.labels = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], dim=1)
        self.module = step.SupervisedLoss(model).train()

    def loss(self) -> Tensor:
        """Mean over the tokens that are predicted."""
        return self.module(self.inputs, self.labels, self.spec) / (self.labels != IGNORED).sum()


class Theirs:
    """transformers with PEFT, as their guides say, attention by SDPA."""

    def __init__(self, directory: Path, ids: Tensor, dtype: torch.dtype) -> None:
        import tests.torchvision_operators  # noqa: F401 - before transformers

        # isort: split
        from peft import LoraConfig, get_peft_model
        from transformers import Gemma3nForCausalLM

        base = Gemma3nForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
        self.ids = ids
        self.module = cast(Any, get_peft_model(cast(Any, base).to(ids.device), lora)).train()

    def loss(self) -> Tensor:
        """Mean over the tokens that are predicted; they shift the labels themselves."""
        return self.module(input_ids=self.ids, labels=self.ids, use_cache=False).loss


SIDES: dict[str, type[Ours | Theirs]] = {"ours": Ours, "theirs": Theirs}


class Worker:
    """A side with its optimizer, and what it can be told to do."""

    def __init__(self, side: Ours | Theirs) -> None:
        self.side = side
        self.parameters = [p for p in side.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, fused=True)
        self.device = next(side.module.parameters()).device
        self.commands: dict[str, Callable[[], dict[str, Any]]] = {
            "size": self.size, "step": self.step, "phases": self.phases, "profile": self.profile, "rate": self.rate,
            "peak": self.peak,
        }  # fmt: skip

    def size(self) -> dict[str, Any]:
        """How much there is to train, and the loss before any of it."""
        with torch.no_grad():
            return {"trained": sum(p.numel() for p in self.parameters), "loss": self.side.loss().item()}

    def step(self) -> dict[str, Any]:
        """One step of training."""
        start = self.now()
        loss = self.side.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"seconds": self.now() - start, "loss": loss.item()}

    def phases(self) -> dict[str, Any]:
        """The parts of one step, in seconds; ours makes the loss's gradient along with it."""
        start = self.now()
        loss = self.side.loss()
        forward = self.now()
        loss.backward()
        backward = self.now()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        end = self.now()
        if isinstance(self.side, Theirs):
            return {"forward and loss": forward - start, "backward": backward - forward, "optimizer": end - backward}
        apart = self.side.loss_seconds
        return {
            "decoder forward": forward - start - apart, "loss and its gradient": apart,
            "decoder backward": backward - forward, "optimizer": end - backward,
        }  # fmt: skip

    def profile(self) -> dict[str, Any]:
        """Shares of one step's time by kind of operation, the largest ones."""
        activity = ProfilerActivity.CUDA if self.device.type == "cuda" else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiler:
            self.step()
        spent: Counter[str] = Counter()
        for event in profiler.key_averages():
            own = event.self_device_time_total if self.device.type == "cuda" else event.self_cpu_time_total
            spent[event.key] += own
        whole = sum(spent.values())
        return {name: time_taken / whole for name, time_taken in spent.most_common(MANY_OPS)}

    def rate(self) -> dict[str, Any]:
        """Floating-point operations per second of a product of square matrices in the model's dtype."""
        dtype = next(p.dtype for p in self.side.module.parameters() if not p.requires_grad)
        return {"per_second": product_rate(self.device, dtype, MATRIX_SIDE)}

    def peak(self) -> dict[str, Any]:
        """The most memory since loading: of the process, or of the device where there is one."""
        return {"bytes": peak_bytes(self.device)}

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        return now(self.device)


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def product_rate(device: torch.device, dtype: torch.dtype, side: int, products: int = PRODUCTS) -> float:
    """Floating-point operations per second of products of square matrices, the first of which is not counted."""
    left = torch.randn(side, side, device=device, dtype=dtype)
    right, out = torch.randn_like(left), torch.empty_like(left)
    torch.mm(left, right, out=out)
    start = now(device)
    for _ in range(products):
        torch.mm(left, right, out=out)
    return products * 2 * side**3 / (now(device) - start)


def peak_bytes(device: torch.device) -> int:
    """The most memory since it was last forgotten: of this process, or of the device where there is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def forget_peak(device: torch.device) -> None:
    """Count memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def batch(vocab: int, rows: int, tokens: int, device: str) -> Tensor:
    """The same random ids for both sides."""
    return torch.randint(1, vocab, (rows, tokens), generator=torch.Generator().manual_seed(0)).to(device)


def main() -> None:
    """Load, and do as told until there is nothing more to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="in a row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="our layers, as trainer.compile does")
    wanted = parser.parse_args()
    config = json.loads((wanted.directory / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    ids = batch(text["vocab_size_per_layer_input"], wanted.rows, wanted.tokens, wanted.device)
    torch.manual_seed(0)
    dtype = getattr(torch, wanted.dtype)
    compiled = {"compiled": True} if wanted.compile and wanted.side == "ours" else {}
    worker = Worker(SIDES[wanted.side](wanted.directory, ids, dtype, **compiled))
    forget_peak(worker.device)  # what loading took is over
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print what they like
    for line in sys.stdin:
        print(json.dumps(worker.commands[line.strip()]()), file=answers, flush=True)


if __name__ == "__main__":
    main()
