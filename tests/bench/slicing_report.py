# SPDX-License-Identifier: Apache-2.0
"""What the slicing benchmark found, in words and a table: medians of runs, and the ratios that are promised."""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

OURS, COPY, NOTEBOOK = "`matslice slice`", "`cp` of the slice", "the notebook's algorithm"
MOST_PEAK_BYTES = 300_000_000
MOST_OF_COPY, MOST_OF_NOTEBOOK = 1.25, 0.85  # of their time
MOST_ASKED, MOST_HELD = 1.2, 1.1  # of the sub-model's bytes


@dataclass(frozen=True)
class Run:
    """What one run of a command took."""

    returned: float  # seconds until it returned
    on_disk: float  # seconds until all it wrote was on disk
    processors: float  # seconds of all processors
    peak_bytes: int  # the most memory it held


@dataclass(frozen=True)
class Load:
    """What loading a sub-model from its parent's files took."""

    seconds: float
    model_bytes: int
    asked_bytes: int  # of the files
    before_bytes: int  # memory of the process before
    peak_bytes: int  # the most memory it held


@dataclass(frozen=True)
class Disk:
    """How fast one file is written and read, in bytes per second."""

    written_per_s: float
    read_per_s: float


@dataclass(frozen=True)
class Figures:
    """All that was measured."""

    runs: Mapping[str, Sequence[Run]]
    loads: Sequence[Load]
    parent_bytes: int
    slice_bytes: int
    disk: Disk

    def middle(self, name: str, figure: Callable[[Run], float]) -> float:
        """The median of a command's runs."""
        return statistics.median(map(figure, self.runs[name]))

    def loaded(self, figure: Callable[[Load], float]) -> float:
        """The median of the loads."""
        return statistics.median(map(figure, self.loads))


PAGE = """\
# Slicing: time and memory

A checkpoint of random bfloat16 numbers under E4B's names ({parent:.1f} GB in four files, with the keys and values that
nothing reads and both towers) is cut to E2B's layers and widths ({slice:.1f} GB). Beside it: a plain copy of the \
result, and
the algorithm of the public slicing notebook (`tests/parity/notebook.py`, its mistakes mended). Each is a process of
its own, in turn, {rounds} times, with nothing of the checkpoints in the page cache before: the median, and the lowest
and the highest.

| | seconds until it returns | until all is on disk | processor seconds | most memory, MB |
|---|---|---|---|---|
{table}

`matslice slice` also hashes what it writes, and returns when all of it is on disk; the others return before that.
Memory is what a process has resident at most, mapped files included.

| `matslice slice` | measured | wanted |
|---|---|---|
| memory | {peak:.0f} MB | at most {most_peak:.0f} MB |
| time, of that of `cp` | {of_copy:.2f} | at most {most_of_copy} |
| the same, until all is on disk | {of_copy_on_disk:.2f} | |
| time, of that of the notebook's algorithm | {of_notebook:.2f} | at most {most_of_notebook} |
| the same, until all is on disk | {of_notebook_on_disk:.2f} | |

A sub-model need not be written to be used: `load` takes it out of the parent's files.

| `load(PARENT, spec=…)` | measured | wanted |
|---|---|---|
| the sub-model in memory | {model:.2f} GB | |
| bytes asked of the files, of the sub-model's | {asked:.3f} | at most {most_asked} |
| memory of the process, of the sub-model's | {held:.3f} | at most {most_held} |
| the same, without the {before:.0f} MB it held before | {held_more:.3f} | |
| seconds | {load_seconds:.1f} | |

Run on {date} by `{command}`; {machine}
"""


def report(figures: Figures, command: str) -> str:
    """The page."""
    rows = [
        f"| {name} | {spread([run.returned for run in runs])} | {spread([run.on_disk for run in runs])}"
        f" | {spread([run.processors for run in runs])} | {max(run.peak_bytes for run in runs) / 1e6:,.0f} |"
        for name, runs in figures.runs.items()
    ]

    def ratio(other: str, figure: Callable[[Run], float]) -> float:
        return figures.middle(OURS, figure) / figures.middle(other, figure)

    return PAGE.format(
        parent=figures.parent_bytes / 1e9,
        slice=figures.slice_bytes / 1e9,
        rounds=len(figures.loads),
        table="\n".join(rows),
        peak=max(run.peak_bytes for run in figures.runs[OURS]) / 1e6,
        most_peak=MOST_PEAK_BYTES / 1e6,
        of_copy=ratio(COPY, lambda run: run.returned),
        of_copy_on_disk=ratio(COPY, lambda run: run.on_disk),
        most_of_copy=MOST_OF_COPY,
        of_notebook=ratio(NOTEBOOK, lambda run: run.returned),
        of_notebook_on_disk=ratio(NOTEBOOK, lambda run: run.on_disk),
        most_of_notebook=MOST_OF_NOTEBOOK,
        model=figures.loaded(lambda load: load.model_bytes) / 1e9,
        asked=figures.loaded(lambda load: load.asked_bytes / load.model_bytes),
        most_asked=MOST_ASKED,
        held=figures.loaded(lambda load: load.peak_bytes / load.model_bytes),
        most_held=MOST_HELD,
        before=figures.loaded(lambda load: load.before_bytes) / 1e6,
        held_more=figures.loaded(lambda load: (load.peak_bytes - load.before_bytes) / load.model_bytes),
        load_seconds=figures.loaded(lambda load: load.seconds),
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        machine=machine(figures.disk),
    )


def spread(seconds: Sequence[float]) -> str:
    """The median, and between what it lies."""
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def machine(disk: Disk) -> str:
    """What it ran on, and with."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    dirty = Path("/proc/sys/vm/dirty_ratio").read_text(encoding="utf-8").strip()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "safetensors"))
    return (
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, {libraries}.\n"
        f"{os.cpu_count()} processor cores, {memory_bytes / 2**30:.0f} GiB of memory, of which {dirty} % may wait to be"
        f" written; one file is written at {disk.written_per_s / 1e9:.2f} GB/s and\nread at"
        f" {disk.read_per_s / 1e9:.2f} GB/s, a core hashes {hashing_speed() / 1e9:.2f} GB/s (SHA-256)."
    )


def hashing_speed() -> float:
    """Bytes per second of SHA-256 on one core."""
    block, blocks = bytes(8 << 20), 16
    digest, start = hashlib.sha256(), time.perf_counter()
    for _ in range(blocks):
        digest.update(block)
    return blocks * len(block) / (time.perf_counter() - start)
