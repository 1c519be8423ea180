# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own that begin in no time: forked from one that has imported all they need.

``python -m tests.trainer.run_server`` reads a request a line, forks, tells the process's number, and after the next
line how it ended. A run can be told to end itself at a moment of its own, without being able to do anything about it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import tests.torchvision_operators  # noqa: F401 - before peft, which imports it by way of transformers
from model.adapter.lora import AdapterConfig
from recipes import train as train_recipe
from recipes.cli import main as command
from tests.pictures import draw
from tests.trainer.parts import Hook, elastic, tiny_trainer, trainer_config
from tests.trainer.streams import packed, streamed
from trainer.average import AverageConfig
from trainer.elastic import ElasticPolicy
from trainer.loop import Trainer
from trainer.sinks import ConsoleSink
from trainer.stopping import EarlyStoppingConfig
from trainer.weights import Weights

IDS = "ids.jsonl"  # beside the run's directory: the rows of every step that was taken


class RunServer:
    """What talks to the server."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.run_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def say(self, line: str) -> str:
        """Say a line, hear one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def run(self, **wishes: Any) -> int:
        """How a run ends: its exit status, or the signal that ended it, negative."""
        self.say(json.dumps(wishes))
        return int(self.say(""))


@contextlib.contextmanager
def run_server() -> Iterator[RunServer]:
    """A server that is gone at the end of the block."""
    server = RunServer()
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


class Rows:
    """A sink that writes down which rows each step took."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        self.path, self.trainer = path, trainer

    def write(self, record: Any) -> None:
        pass

    def tick(self, step: int, loss: float) -> None:
        starts = self.trainer.positions((step - 1) * self.trainer.rows_per_step)
        rows = [row.where for start in starts for row in self.trainer.loader.take(start)]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "rows": rows, "loss": loss}) + "\n")

    def close(self) -> None:
        pass


def end(number: int = signal.SIGKILL) -> None:
    """End this process as from outside."""
    os.kill(os.getpid(), number)


def end_in_accumulation(trainer: Trainer, step: int) -> None:
    """End between the two micro-batches of a step."""
    steps, no_sync = [0], trainer.accelerator.no_sync

    @contextlib.contextmanager
    def then_end(model: Any) -> Iterator[None]:
        with no_sync(model):
            yield
        steps[0] += 1
        if trainer.run.resumed_step + steps[0] == step:
            end()

    trainer.accelerator.no_sync = then_end


def end_in_save(trainer: Trainer, step: int) -> None:
    """End when half of a checkpoint is written."""
    save: Callable[[Path], None] = trainer.weights.save

    def save_half(directory: Path) -> None:
        save(directory)
        if f"{step:06d}" in str(directory):
            end()

    trainer.weights = Weights(save=save_half, load=trainer.weights.load)


def end_some_time_in_save(trainer: Trainer, seconds: float, after: Path) -> None:
    """End so many seconds after the first checkpoint was begun, unless it is whole by then, which ``after`` tells."""
    save = trainer.run.save

    def timed(*what: Any) -> Path:
        if not after.exists():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        whole = save(*what)
        signal.setitimer(signal.ITIMER_REAL, 0)
        after.touch()
        return whole

    trainer.run.save = timed  # type: ignore[method-assign]


ENDS: dict[str, Callable[[Trainer, int], None]] = {"accumulating": end_in_accumulation, "saving": end_in_save}


def fit(wishes: dict[str, Any]) -> None:
    """A run of ``tests.trainer.parts``: two micro-batches a step, an adapter with dropout unless ``whole``.

    ``packed``: several rows in a pack; ``stream``: the file that rows are read from while it trains, packed, too.
    """
    output, at, where = Path(wishes.pop("output")), wishes.pop("end_at", 0), wishes.pop("end", "idle")
    adapter = None if wishes.pop("whole", False) else AdapterConfig(rank=2, alpha=4, dropout=0.1)
    stream, is_packed, workers = wishes.pop("stream", None), wishes.pop("packed", False), wishes.pop("workers", 0)
    in_save, number = wishes.pop("in_save", None), wishes.pop("signal", signal.SIGKILL)
    policy, num_validation = ElasticPolicy(wishes.pop("policy", "off")), wishes.pop("num_validation", 0)
    if decay := wishes.pop("average_decay", None):
        wishes["average"] = AverageConfig(decay=decay)
    if patience := wishes.pop("patience", None):
        wishes["early_stopping"] = EarlyStoppingConfig(patience=patience)
    more = [Hook(at, lambda: end(number))] if at and where == "idle" else []
    trainer = tiny_trainer(
        trainer_config(output, gradient_accumulation=2, **wishes), adapter=adapter, more_sinks=more,
        elastic_config=elastic(policy), num_validation=num_validation,
    )  # fmt: skip
    if stream is not None:
        trainer = streamed(trainer, Path(stream), workers=workers)
    elif is_packed:
        trainer = packed(trainer, workers=workers)
    trainer.sinks = [*trainer.sinks, Rows(output.with_name(IDS), trainer)]
    if where in ENDS:
        ENDS[where](trainer, at)
    if in_save is not None:
        end_some_time_in_save(trainer, in_save, output.with_name("after"))
    trainer.fit()


def run_command(words: Sequence[str], *, at_step: int, numbers: Sequence[int], before: bool) -> int:
    """``matslice`` with these words; signals come after a step, or when weights are about to be read."""
    tick, build = ConsoleSink.tick, train_recipe.build_trained

    def tick_and_signal(sink: ConsoleSink, step: int, loss: float) -> None:
        tick(sink, step, loss)
        if step == at_step:
            for number in numbers:
                end(number)

    def signal_and_build(*what: Any) -> Any:
        for number in numbers:
            end(number)
        return build(*what)

    if before:
        train_recipe.build_trained = signal_and_build
    elif numbers:
        ConsoleSink.tick = tick_and_signal  # type: ignore[method-assign]
    return command(words)


def serve(asked: dict[str, Any]) -> int:
    """Do what a request asks for."""
    told = os.open(asked.pop("told", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "words" in asked:
        return run_command(**asked)
    fit(asked)
    return 0


def main() -> None:
    torch.set_num_threads(1)
    draw(wanted=False)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = serve(json.loads(line))
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            finally:
                sys.stderr.flush()
                sys.stdout.flush()
                os._exit(status)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
