# SPDX-License-Identifier: Apache-2.0
"""How far a long reading or writing of bytes is, on a terminal; elsewhere nothing is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def progress_bar(told: str, *, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Gives what is to be called with the bytes done so far, and those there are.

    Args:
        told: What is being done, beside the bar.
        console: Where to show it, if that is a terminal; standard error if None.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(told, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
