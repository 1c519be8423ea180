# SPDX-License-Identifier: Apache-2.0
"""The whole of it on real text, from nothing to a comparison of sizes, in minutes on two processor cores.

A small Gemma 3n is trained elastically on general text, an elastic adapter on a second task, and both
are cut to every size and measured from disk. Each step is a recipe, run as the command that is shown.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
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
from model.slicing.spec import SliceSpec
from recipes.demo_data import ATTRIBUTION_FILE, prepare
from recipes.evaluate import measure
from recipes.generate import run as answer
from recipes.program import quote, quote_free_text, start
from recipes.schema import DemoRecipe
from recipes.slice import run as cut
from recipes.train import run as train
from trainer.data.sources import read_conversations
from trainer.evaluation.held_out import Score, majority_accuracy
from trainer.evaluation.report import MARKDOWN_FILE, PICTURE_FILE, ROWS_FILE, SizeRow, table, write_report

MARKER = "DEMO.txt"
MARKER_TEXT = "matslice demo made this directory, and empties it when it is run again.\n"
PARTS = ("data", "base", "topic", "sizes", ROWS_FILE, MARKDOWN_FILE, PICTURE_FILE)


@dataclass(frozen=True)
class Measured:
    """One size, cut out and measured from its own directory."""

    directory: Path
    parameters: int
    effective_parameters: int
    bytes: int
    score: Score


def run(recipe: DemoRecipe) -> None:
    """Run every step, and say at the end where things are and how to go on."""
    started = time.monotonic()
    torch.set_num_threads(recipe.threads)
    console = Console(width=None if sys.stdout.isatty() else 160)
    output = claim(recipe.output)
    demo = Demo(recipe, console)

    console.rule("1/5  Wikipedia summaries and a vocabulary made from them")
    prepare(output / "data", text_characters=recipe.text_characters, vocab_size=recipe.vocab_size)
    console.print(f"{output / 'data'}: general text and a second task; {output / 'data' / ATTRIBUTION_FILE}")
    console.rule("2/5  A base of several sizes, from nothing, on general text")
    demo.train("demo_base", output / "base", task="describe", extra=recipe.base)
    before = demo.cut_and_measure("before", [])
    console.rule("3/5  One adapter for all of its sizes, on a second task")
    demo.train("demo", output / "topic", task="topic", extra=[f"checkpoint={quoted(demo.base)}", *recipe.topic])
    console.rule("4/5  The adapter folded in, cut to every size")
    after = demo.cut_and_measure("after", [f"adapter_path={quoted(output / 'topic/weights')}", "merge=true"])
    console.rule("5/5  Every size, before and after, on articles that no step has seen")
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

    def compose(self, name: str, overrides: Sequence[str]) -> Any:
        """Show a command, and give the recipe it would run."""
        self.console.print(
            f"$ {shlex.join(['matslice', name, *overrides])}", highlight=False, markup=False, soft_wrap=True
        )
        return OmegaConf.to_object(compose(name, overrides=[quote_free_text(word) for word in overrides]))

    def train(self, experiment: str, output: Path, *, task: str, extra: Sequence[str]) -> None:
        """Train on one of the tasks."""
        files = {split: quoted(self.data / task / f"{split}.jsonl") for split in ("train", "validation")}
        train(self.compose("train", [
            f"experiment={experiment}", f"trainer.output={quoted(output)}", f"trainer.threads={self.recipe.threads}",
            f"tokenizer={quoted(self.data / 'tokenizer')}",
            f"data.train=[{files['train']}]", f"data.validation=[{files['validation']}]", *extra,
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
        """The size of what lies in ``directory``, and its score on held-out articles of the second task."""
        [(_, score)] = measure(self.compose("evaluate", [
            f"checkpoint={quoted(directory)}", f"files=[{quoted(self.data / 'topic/test.jsonl')}]",
            f"max_examples={self.recipe.held_out_examples}", f"batch_size={self.recipe.held_out_batch_size}",
        ]))  # fmt: skip
        self.console.print(f"loss {score.loss:.3f}, accuracy {score.accuracy:.3f} of {score.examples} articles")
        text = Checkpoint.open(directory).config.text
        shapes, whole = text_shapes(text, Layout.used).items(), SliceSpec.full(text)
        return Measured(
            directory=directory,
            parameters=count_parameters(shapes, whole, text),
            effective_parameters=count_effective_parameters(shapes, whole, text),
            bytes=sum(path.stat().st_size for path in directory.glob("*.safetensors")),
            score=score,
        )

    def report(self, before: dict[str, Measured], after: dict[str, Measured]) -> None:
        """Write the comparison, and show it."""
        held_out = read_conversations([self.data / "topic/test.jsonl"])[: self.recipe.held_out_examples]
        majority = majority_accuracy(read_conversations([self.data / "topic/train.jsonl"]), held_out)
        rows = [
            SizeRow(
                name=name, parameters=size.parameters, effective_parameters=size.effective_parameters,
                bytes=size.bytes, before=before[name].score, after=size.score, majority=majority,
            )
            for name, size in after.items()
        ]  # fmt: skip
        write_report(rows, self.recipe.output)
        self.console.print(table(rows))

    def ask(self, checkpoint: Path) -> None:
        """Let one of the slices answer about an article that it has not seen."""
        example = read_conversations([self.data / "topic/test.jsonl"])[0]
        texts = {message.role: message.text for message in example.messages}
        self.console.print("One of the slices answers, and the command to ask it again:\n")
        prompt = texts[Role.user]
        recipe = self.compose("generate", [
            f"checkpoint={quoted(checkpoint)}", f"prompt={prompt}", "generation.max_new_tokens=16",
        ])  # fmt: skip
        self.console.print(f"{prompt}\n", highlight=False, markup=False)
        answer(recipe)
        self.console.print(f"(Wikipedia's editors say: {texts[Role.assistant]})", highlight=False, markup=False)


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line; plain where it can be."""
    text = str(path)
    return text if all(letter.isalnum() or letter in "/._-" for letter in text) else quote(text)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("demo", run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
