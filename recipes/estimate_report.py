# SPDX-License-Identifier: Apache-2.0
"""How an estimate is told, and what a training process takes before it has a model."""

from __future__ import annotations

import importlib
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from trainer.estimate import GIVING_BACK, Planned

RUNTIME = "program and libraries"
GIB = 1 << 30
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Report:
    """What is estimated of a step, by what it is for, and how many bytes other settings would save."""

    planned: Planned
    found: Mapping[str, int]
    savings: Mapping[str, int]
    on_cuda: bool

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.found.values())

    def as_json(self) -> dict[str, Any]:
        """In plain values; sizes in bytes."""
        return {
            "on": "cuda" if self.on_cuda else "cpu",
            "batch_size": self.planned.trainer.batch_size,
            "tokens_per_row": self.planned.width,
            "bytes": dict(self.found),
            "total": self.total,
            "savings": dict(self.savings),
        }

    def print(self) -> None:
        """As tables."""
        console = Console()
        trainer, place = self.planned.trainer, "the GPU" if self.on_cuda else "the processor"
        table = Table(
            title=f"memory at the peak of a step on {place}: {trainer.batch_size} × {self.planned.width} tokens"
        )
        table.add_column("part")
        table.add_column("GiB", justify="right")
        for part, nbytes in self.found.items():
            table.add_row(part, f"{nbytes / GIB:.2f}")
        table.add_section()
        table.add_row("total", f"{self.total / GIB:.2f}")
        console.print(table)
        if self.savings:
            console.print("what would take less:")
        for setting, saved in self.savings.items():
            console.print(f"  {setting} saves {saved / GIB:.2f} GiB", highlight=False)
        if not self.on_cuda and sys.platform == "linux":
            given = " ".join(f"{name}={value}" for name, value in GIVING_BACK.items())
            print(f"with {given} in the environment; without it, glibc keeps what is free: a tenth to a half more")


def process_bytes() -> int:
    """Memory of this process when all that training imports is there and its products have been set up."""
    importlib.import_module("recipes.train")
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))
    if STATUS.is_file():
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
