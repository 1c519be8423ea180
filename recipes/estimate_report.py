# SPDX-License-Identifier: Apache-2.0
"""How an estimate is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.planned import Planned

RUNTIME = "program and libraries"
GIB = 1 << 30


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
            title=f"memory at the peak of a run on {place}: {trainer.batch_size} × {self.planned.width} tokens"
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
