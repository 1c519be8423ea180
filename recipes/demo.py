# SPDX-License-Identifier: Apache-2.0
"""The whole of it on real data, from nothing to a comparison of sizes, in minutes on two processor cores.

A small Gemma 3n is trained elastically to read, see and hear, one elastic adapter on a task of each kind, and
both are cut to every size and measured from disk. Each step is a recipe, run as the command that is shown.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from omegaconf import OmegaConf
from rich.console import Console

from model.checkpoint.reader import Checkpoint
from model.errors import ConfigError
from model.processor.chat import Role
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from recipes.demo_data import ATTRIBUTION_FILE, Amounts, prepare
from recipes.evaluate import EvaluateRecipe, measure
from recipes.generate import GenerateRecipe
from recipes.generate import run as answer
from recipes.program import start
from recipes.quoting import quote, quote_free_text
from recipes.schema import register_schema
from recipes.slice import SliceRecipe
from recipes.slice import run as cut
from recipes.train import TrainRecipe
from recipes.train import run as train
from trainer.data.sources import read_conversations
from trainer.evaluation.held_out import Score, majority_accuracy
from trainer.evaluation.report import (
    MARKDOWN_FILE,
    PICTURE_FILE,
    ROWS_FILE,
    SizeRow,
    TaskScore,
    table,
    write_report,
)

MARKER = "DEMO.txt"
MARKER_TEXT = "matslice demo made this directory, and empties it when it is run again.\n"
PARTS = ("data", "base", "adapter", "sizes", ROWS_FILE, MARKDOWN_FILE, PICTURE_FILE)


EXPLANATION = """\
topic: which of eleven fields an article is of. digit: handwritten digits. say: people saying the numbers 0 to 9
in English, French and Italian; they were not heard in training, which had synthetic voices and two other people."""
WARMUP_STEPS = 20
TASKS = ("topic", "digit", "say")
STEPS = {"train": TrainRecipe, "slice": SliceRecipe, "evaluate": EvaluateRecipe, "generate": GenerateRecipe}


@dataclass(kw_only=True, slots=True)
class DemoRecipe:
    """Show all of it on real texts, pictures and speech: train a small base and an adapter elastically, slice them,
    compare the sizes.
    """

    output: Path  # directory; a demo that is there already is replaced
    sizes: dict[str, SliceConfig]  # cut and compared; every one is in conf/slice
    asked: str  # the size that answers at the end
    text_characters: int  # of an article's text that are used
    synthetic_clips: int  # spoken numbers that are made to learn from
    copies: int  # of each recording of a person heard in training, in other guises
    held_out_examples: int  # of a task that each size is measured on, at most
    held_out_batch_size: int
    batch_size: int  # rows of a training step
    base_steps: dict[str, int]  # of describe, read and hear
    adapter_steps: dict[str, int]  # of topic, digit and say
    threads: int  # processor threads of torch

    def __post_init__(self) -> None:
        if self.asked not in self.sizes:
            raise ConfigError(f"demo: asked is '{self.asked}'; it must be one of sizes: {', '.join(self.sizes)}")


@dataclass(frozen=True)
class Measured:
    """One size, cut out and measured from its own directory, on each task."""

    directory: Path
    parameters: int
    effective_parameters: int
    bytes: int
    scores: dict[str, Score]


def run(recipe: DemoRecipe) -> None:
    """Run every step, and say at the end where things are and how to go on."""
    started = time.monotonic()
    torch.set_num_threads(recipe.threads)
    for name, schema in STEPS.items():
        register_schema(name, schema)
    console = Console(width=None if sys.stdout.isatty() else 160)
    output = claim(recipe.output)
    demo = Demo(recipe, console)

    console.rule("1/5  Texts, pictures and recordings, and a vocabulary")
    demo.prepare()
    console.rule("2/5  A base of several sizes, from nothing: it learns to read, to see and to hear")
    demo.train("demo_base", output / "base", steps=recipe.base_steps, extra=[])
    before = demo.cut_and_measure("before", [])
    console.rule("3/5  One adapter for all of its sizes, on a new task of each kind")
    demo.train(
        "demo", output / "adapter", steps=recipe.adapter_steps, extra=[f"checkpoint={quoted(demo.base)}"]
    )  # fmt: skip
    console.rule("4/5  The adapter folded in, cut to every size")
    after = demo.cut_and_measure("after", [f"adapter_path={quoted(output / 'adapter/weights')}", "merge=true"])
    console.rule("5/5  Every size, before and after, on articles, pictures and people that no step has met")
    demo.report(before, after)
    demo.ask(after[recipe.asked].directory)
    console.print(f"\n{time.monotonic() - started:.0f} seconds; {output / PICTURE_FILE}, {output / MARKDOWN_FILE}")


def claim(output: Path) -> Path:
    """Make the demo's directory, or empty it of what the last demo left.

    Raises:
        ConfigError: It holds something else.
    """
    if output.exists() and not (output / MARKER).is_file() and (output.is_file() or any(output.iterdir())):
        raise ConfigError(f"output: '{output}' is there and not from a demo; choose another name, or remove it")
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text(MARKER_TEXT, encoding="utf-8")
    for part in PARTS:
        path = output / part
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return output


class Demo:
    """The steps, each a command that could be typed."""

    def __init__(self, recipe: DemoRecipe, console: Console) -> None:
        self.recipe = recipe
        self.console = console
        self.data = recipe.output / "data"
        self.base = recipe.output / "base" / "weights"

    def prepare(self) -> None:
        """Write the data."""
        recipe = self.recipe
        shape = load("train", ["experiment=demo_base"]).model.to_model_config()
        prepare(
            self.data, shape,
            Amounts(
                text_characters=recipe.text_characters, synthetic_clips=recipe.synthetic_clips, copies=recipe.copies,
                batch_size=recipe.batch_size,
            ),
            courses={"base": recipe.base_steps, "adapter": recipe.adapter_steps},
        )  # fmt: skip
        self.console.print(f"{self.data}: a folder for each task; whose works they are is in {ATTRIBUTION_FILE} there")

    def compose(self, name: str, overrides: Sequence[str]) -> Any:
        """Show a command, and give the recipe it would run."""
        self.console.print(
            f"$ {shlex.join(['matslice', name, *overrides])}", highlight=False, markup=False, soft_wrap=True
        )
        return load(name, overrides)

    def train(self, experiment: str, output: Path, *, steps: Mapping[str, int], extra: Sequence[str]) -> None:
        """Train on some of the tasks."""
        course, total = self.data / output.name, sum(steps.values())
        train(self.compose("train", [
            f"experiment={experiment}", f"trainer.output={quoted(output)}", f"trainer.threads={self.recipe.threads}",
            f"trainer.batch_size={self.recipe.batch_size}", f"trainer.max_steps={total}",
            f"schedule.warmup_steps={min(WARMUP_STEPS, total // 2)}", f"tokenizer={quoted(self.data / 'tokenizer')}",
            f"data.train=[{quoted(course / 'train.jsonl')}]",
            f"data.validation=[{quoted(course / 'validation.jsonl')}]", *extra,
        ]))  # fmt: skip

    def cut_and_measure(self, when: str, how: Sequence[str]) -> dict[str, Measured]:
        """Cut every size out of the base, and measure each from its own directory."""
        measured = {}
        for name in self.recipe.sizes:
            directory = self.recipe.output / "sizes" / when / name
            cut(self.compose("slice", [
                f"checkpoint={quoted(self.base)}", f"slice={name}", f"output={quoted(directory)}", *how,
            ]))  # fmt: skip
            shutil.copyfile(self.data / ATTRIBUTION_FILE, directory / ATTRIBUTION_FILE)
            measured[name] = self.measure(directory)
        return measured

    def measure(self, directory: Path) -> Measured:
        """The size of what lies in ``directory``, and its score on what is held out of each task."""
        scores = {}
        for task in TASKS:
            [(_, score)] = measure(self.compose("evaluate", [
                f"checkpoint={quoted(directory)}", f"files=[{quoted(self.data / task / 'test.jsonl')}]",
                f"max_examples={self.recipe.held_out_examples}", f"batch_size={self.recipe.held_out_batch_size}",
            ]))  # fmt: skip
            self.console.print(f"{task}: loss {score.loss:.3f}, accuracy {score.accuracy:.3f} of {score.examples}")
            scores[task] = score
        text = Checkpoint.open(directory).config.text
        shapes, whole = text_shapes(text, Layout.used).items(), SliceSpec.full(text)
        return Measured(
            directory=directory,
            parameters=count_parameters(shapes, SubModel(whole), text),
            effective_parameters=count_effective_parameters(shapes, SubModel(whole), text),
            bytes=sum(path.stat().st_size for path in directory.glob("*.safetensors")),
            scores=scores,
        )

    def report(self, before: dict[str, Measured], after: dict[str, Measured]) -> None:
        """Write the comparison, and show it."""
        majority = {task: self.majority(task) for task in TASKS}
        rows = [
            SizeRow(
                name=name, parameters=size.parameters, effective_parameters=size.effective_parameters, bytes=size.bytes,
                tasks={task: TaskScore(before[name].scores[task], size.scores[task], majority[task]) for task in TASKS},
            )
            for name, size in after.items()
        ]  # fmt: skip
        write_report(rows, self.recipe.output)
        self.console.print(table(rows))
        self.console.print(EXPLANATION, highlight=False)

    def majority(self, task: str) -> float:
        """The accuracy of the most frequent training answer on what is measured."""
        held_out = read_conversations([self.data / task / "test.jsonl"])[: self.recipe.held_out_examples]
        return majority_accuracy(read_conversations([self.data / task / "train.jsonl"]), held_out)

    def ask(self, checkpoint: Path) -> None:
        """Let one of the slices answer about an article, a picture and a recording that it has not met."""
        self.console.print("\nOne of the slices answers, and the commands to ask it again:\n")
        for task, truth in (
            ("topic", "Wikipedia's editors"),
            ("digit", "The one who wrote it"),
            ("say", "The speaker"),
        ):
            example = read_conversations([self.data / task / "test.jsonl"])[0]
            message = next(message for message in example.messages if message.role is Role.user)
            media = [f"image={os.path.normpath(str(picture.source))}" for picture in message.pictures]
            media += [f"audio={os.path.normpath(str(recording.source))}" for recording in message.recordings]
            recipe = self.compose("generate", [
                f"checkpoint={quoted(checkpoint)}", f"prompt={message.text}", *media, "generation.max_new_tokens=16",
            ])  # fmt: skip
            answer(recipe)
            self.console.print(f"({truth}: {example.answers[0]})\n", highlight=False, markup=False)


def load(name: str, overrides: Sequence[str]) -> Any:
    """A recipe, as its command line would make it."""
    return OmegaConf.to_object(compose(name, overrides=[quote_free_text(word) for word in overrides]))


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line; plain where it can be."""
    text = str(path)
    return text if all(letter.isalnum() or letter in "/._-" for letter in text) else quote(text)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("demo", DemoRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
