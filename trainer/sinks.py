# SPDX-License-Identifier: Apache-2.0
"""Where records go: the console, a JSON Lines file, Weights & Biases. Only the first process has sinks."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from model.errors import ConfigError
from trainer.checkpoint import Run, write_whole
from trainer.config import TrainerConfig, WandbMode
from trainer.metrics import Record, numbers_of
from trainer.tensorboard import TensorBoardSink

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id"


@runtime_checkable
class Sink(Protocol):
    """Something that records go to."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def tick(self, step: int, loss: float) -> None:
        """Know that a step is done, between two records."""
        ...

    def close(self) -> None:
        """Take no more."""
        ...


class ConsoleSink:
    """A progress bar over a line of figures on a terminal; a line per record where output is not one."""

    def __init__(self, *, max_steps: int, resumed_step: int, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("training"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[last]}"),
            expand=True,
        )  # fmt: skip
        self.task = self.progress.add_task("train", total=max_steps, completed=resumed_step, last="")
        self.figures = Text(no_wrap=True, overflow="ellipsis")  # on a line of its own: a narrow terminal has room then
        self.live = Live(Group(self.progress, self.figures), console=console, refresh_per_second=4)
        if console.is_terminal:
            self.live.start()

    def write(self, record: Record) -> None:
        """Change the line of figures, or print one."""
        text = in_words(record)
        if record["kind"] == "train":
            self.progress.update(self.task, completed=record["step"])
            self.figures.plain = text
        if record["kind"] != "train" or not self.console.is_terminal:
            self.console.print(f"step {record['step']}: {text}", highlight=False, markup=False, soft_wrap=True)

    def tick(self, step: int, loss: float) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=step, last=f"loss {loss:.4f}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.live.stop()


class JsonlSink:
    """One line per record, handed to the system before the next step begins.

    What a killed run wrote after the step it is resumed from is cut off: those steps are made again. A run that
    is resumed twice from the same step began there once.

    Args:
        resumed_step: Where the run goes on.
        evaluated: Whether what was measured after that step is measured, and not to be measured again.
    """

    def __init__(self, path: Path, *, resumed_step: int, evaluated: bool = True) -> None:
        again = {"start"} if evaluated else {"start", "validation"}
        kept = [
            record
            for record in read_records(path)
            if record["step"] < resumed_step or (record["step"] == resumed_step and record["kind"] not in again)
        ]
        write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append a line."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def tick(self, step: int, loss: float) -> None:
        """The file has records only."""

    def close(self) -> None:
        """Close the file."""
        os.fsync(self.file.fileno())
        self.file.close()


class WandbSink:
    """Weights & Biases; offline it writes under ``directory``, for ``wandb sync`` to send later.

    Args:
        key: Where ``mode`` was written, for errors.

    Raises:
        ConfigError: It cannot be reached, or nobody is logged in.
    """

    def __init__(
        self, directory: Path, *, mode: WandbMode, project: str, config: Mapping[str, Any], key: str = "trainer.wandb"
    ) -> None:
        import wandb  # heavy, and most runs do without

        id_file = directory / WANDB_ID_FILE
        if not id_file.exists():
            write_whole(id_file, uuid.uuid4().hex)
        try:
            self.run = wandb.init(
                project=project,
                name=directory.name,
                dir=directory,
                config=dict(config),
                mode="offline" if mode is WandbMode.offline else "online",
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                settings=wandb.Settings(console="off"),  # the terminal is the progress bar's
            )
        except wandb.Error as error:
            raise ConfigError(
                f"{key} is {mode}, but Weights & Biases cannot be used ({error}); run 'wandb login', or set"
                f" {key}=offline"
            ) from None

    def write(self, record: Record) -> None:
        """Log the numbers of a record under its kind, those of a validation also under its spec."""
        self.run.log(numbers_of(record), step=record["step"])

    def tick(self, step: int, loss: float) -> None:
        """Weights & Biases has records only."""

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


def open_sinks(config: TrainerConfig, run: Run, *, console: Console, settings: Mapping[str, Any]) -> list[Sink]:
    """The sinks that ``config`` asks for, in the first process; none in the others.

    Args:
        settings: What to show beside the figures on Weights & Biases.
    """
    if not run.accelerator.is_main_process:
        return []
    resumed_step = run.resumed_step
    if resumed_step == 0:  # what a run that came to nothing left behind is not this one's
        (run.directory / WANDB_ID_FILE).unlink(missing_ok=True)
    sinks: list[Sink] = [JsonlSink(
        run.directory / METRICS_FILE, resumed_step=resumed_step,
        evaluated=0 < resumed_step == run.state.evaluated_at,
    )]  # fmt: skip
    if config.wandb is not WandbMode.off:
        sinks.append(WandbSink(run.directory, mode=config.wandb, project=config.wandb_project, config=settings))
    if config.tensorboard:
        sinks.append(TensorBoardSink(run.directory, resumed_step=resumed_step))
    sinks.append(ConsoleSink(max_steps=config.num_steps, resumed_step=resumed_step, console=console))
    return sinks


def read_records(path: Path) -> Iterator[Record]:
    """The records of a log; a last line that a killed process left half-written is no record."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def in_words(record: Record) -> str:
    """What a person wants to see of a record while waiting."""
    if record["kind"] == "validation":
        return (
            f"validation {record['spec']}: loss {record['loss']:.4f}, perplexity {record['perplexity']:.2f},"
            f" accuracy {record['accuracy']:.3f}"
        )
    if record["kind"] == "start":
        streamed = "the first " if record["steps_per_epoch"] is None else ""
        return (
            f"{streamed}{record['train_rows']} rows ({special_rows('train', record)}), validation"
            f" {record['validation_rows']} ({special_rows('validation', record)});"
            f"{packs(record)} {record['trainable_parameters']:,} of"
            f" {record['total_parameters']:,} parameters ({' and '.join(record['modalities'])});"
            f" trains {', '.join(record['specs'])}"
        )
    minutes, seconds = divmod(round(record["eta_seconds"]), 60)
    return (
        f"loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}  {record['tokens_per_second']:.0f} tokens/s"
        f" ({record['supervised_tokens_per_second']:.0f} supervised)  {record['memory_bytes'] / 2**30:.2f} GiB"
        f"  {minutes}:{seconds:02d} to go"
    )


def packs(record: Record) -> str:
    """In how many packs rows lie, and how full these are, if each is not alone; and how many steps take them all."""
    if record["steps_per_epoch"] is None:
        return " others are read while training;"
    count = record.get("train_packs", record["train_rows"])
    full = f" {count} packs, {record['train_packs_filled']:.0%} full;" if count != record["train_rows"] else ""
    return f"{full} {record['steps_per_epoch']:.1f} steps per epoch;"


def special_rows(name: str, record: Record) -> str:
    """How many rows were too long, and what is special about others; what none of them is, is left out."""
    special = {"bad": "bad", "truncated": "cut short", "with_images": "with images", "with_audio": "with sound"}
    others = [f"{count} {said}" for key, said in special.items() if (count := record[f"{name}_rows_{key}"])]
    return ", ".join([f"{record[f'{name}_rows_skipped']} too long", *others])
