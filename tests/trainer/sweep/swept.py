# SPDX-License-Identifier: Apache-2.0
"""A small sweep: the tiny model, two tasks of conversations, three sub-models; and processes that can be killed in it.

``python -m tests.trainer.sweep.swept`` reads a request a line and forks a process for it: ``directory``, ``specs``,
after how many ``seconds`` to send it SIGKILL, or at which write it is to send that to itself when half is ``written``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tests.torchvision_operators  # noqa: F401 - before peft, which imports it by way of transformers
from model.slicing.official import official
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from tests.tiny import TINY_TEXT, tiny_config, tiny_model
from tests.trainer.parts import SLICES, rows, spelling, tiny_tokenizer
from trainer.data.collate import Collator
from trainer.data.supervise import TokenRow
from trainer.evaluation.engine import Engine
from trainer.evaluation.metric import Metric, Values, ratio
from trainer.evaluation.statistics import StatisticsConfig
from trainer.soft_tokens import SharedTowers
from trainer.sweep import items as items_module
from trainer.sweep import store as store_module
from trainer.sweep.identity import Identity
from trainer.sweep.row import Row
from trainer.sweep.run import About, sweep
from trainer.sweep.store import Store

SPECS = {name: SliceSpec.resolve(written, TINY_TEXT) for name, written in SLICES.items()}
FULL = SPECS["full"]
LOSS = Metric(
    name="loss", unit="nats per token", higher_is_better=False,
    parts=lambda values: (values["loss_sum"], values["tokens"]), finish=ratio,
)  # fmt: skip
PERPLEXITY = Metric(
    name="perplexity", unit="tokens", higher_is_better=False, parts=LOSS.parts,
    finish=lambda sums: np.exp(ratio(sums)),
)  # fmt: skip


@dataclass
class Spelling:
    """A task: some conversations, a few at a time, and what was asked of it."""

    name: str
    start: int = 0
    num_items: int = 9
    batch_size: int = 2
    fingerprint: str = "of the spelling"
    place: str = ""
    modalities: frozenset[Modality] = frozenset()
    metrics: tuple[Metric, ...] = (LOSS, PERPLEXITY)
    asked: list[tuple[tuple[str, ...], int]] = field(default_factory=list)  # sub-models and the batch's first item

    @property
    def rows(self) -> Sequence[TokenRow]:
        return all_rows()[self.start : self.start + self.num_items]

    @property
    def items(self) -> Sequence[str]:
        return [f"{self.place}{self.name}.jsonl:{number + 1}" for number in range(self.num_items)]

    @property
    def digests(self) -> Sequence[str]:
        return [f"{self.fingerprint} {number}" for number in range(self.num_items)]

    @property
    def batches(self) -> Sequence[range]:
        size, end = self.batch_size, self.num_items
        return [range(start, min(start + size, end)) for start in range(0, end, size)]

    def measure(self, engine: Engine, specs: Sequence[SliceSpec], batch: range) -> list[list[Values]]:
        self.asked.append((tuple(spec.name for spec in specs), batch.start))
        scores = engine.score(self.rows[batch.start : batch.stop], specs)
        return [[{"loss_sum": row.loss_sum, "tokens": row.tokens} for row in of_spec] for of_spec in scores]


@functools.cache
def all_rows() -> Sequence[TokenRow]:
    """What tasks take their rows from."""
    return rows(spelling(17))


def tasks() -> list[Spelling]:
    """Two, of which one has a name that no file can bear."""
    return [Spelling("spelling"), Spelling("lm_eval:words/hard", start=9, num_items=8, batch_size=3, fingerprint="w")]


@functools.cache
def engine() -> Engine:
    """The tiny model, which nothing changes."""
    model = tiny_model()
    return Engine(model=model, tokenizer=tiny_tokenizer(), collator=Collator(0), towers=SharedTowers(model))


def identity(**changes: Any) -> Identity:
    """What the sweep is."""
    values: dict[str, Any] = {
        "model": "fingerprint", "dtype": "float32", "reference": FULL, "tasks": tasks(),
        "statistics": StatisticsConfig(num_resamples=60), "settings": {"batch_size": 2},
        "surroundings": {"torch": "2.0"},
    }  # fmt: skip
    return Identity(**values | changes)


def about() -> About:
    """What rows say beside."""
    return About(config=tiny_config(), officials=official(TINY_TEXT), versions={"torch": "2.0"})


def swept(directory: Path, names: Sequence[str] = tuple(SPECS), *, resume: bool = True, **changes: Any) -> list[Row]:
    """The rows of a sweep, begun or gone on with."""
    specs, found = [SPECS[name] for name in names], identity(**changes)
    with contextlib.closing(Store(directory, found, specs, resume=resume)) as store:
        return sweep(engine(), list(found.tasks), specs, store, about())


def timeless(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows without what differs each time: seconds and memory."""
    left_out = {"seconds", "seconds_together", "peak_memory_bytes"}
    return [{key: value for key, value in row.record().items() if key not in left_out} for row in rows]


def die_in_write(number: int) -> None:
    """Let this process end when half of its write of this number, from 1, is on the disk."""
    whole, writes = store_module.append, [0]

    def half(path: Path, lines: str) -> None:
        writes[0] += 1
        if writes[0] == number:
            whole(path, lines[: len(lines) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path, lines)

    store_module.append = items_module.append = half


class Server:
    """What talks to the process that forks others."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.sweep.swept"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=Path(__file__).parents[3], env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, directory: Path, **wishes: Any) -> int:
        """How a sweep ends: its exit status, or the signal that ended it, negative."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"directory": str(directory), **wishes}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that is gone at the end of the block."""
    with contextlib.closing(Server()) as server:
        yield server


def serve(wishes: dict[str, Any]) -> int:
    """Fork, sweep, kill; how it ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if "written" in wishes:
                die_in_write(wishes["written"])
            swept(Path(wishes["directory"]), wishes.get("specs", tuple(SPECS)))
            status = 0
        finally:
            os._exit(status)
    if "seconds" in wishes:
        time.sleep(wishes["seconds"])
        os.kill(child, signal.SIGKILL)  # it is no one else's number before it is waited for
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm = engine(), all_rows()  # once for all that are forked
    for request in sys.stdin:
        print(serve(json.loads(request)), flush=True)
