# SPDX-License-Identifier: Apache-2.0
"""The ``matslice`` command: ``matslice NAME key=value …`` is ``python -m recipes.NAME key=value …``."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

RECIPES = {
    "train": "train a model, or an adapter on it, at one size or elastically",
    "estimate": "tell how much memory a training run takes",
    "plan": "tell what a sub-model costs, or which one a budget allows",
    "slice": "cut a smaller model out of a checkpoint",
    "verify": "check a checkpoint: tensors, checksums, lineage",
    "evaluate": "measure sub-models on held-out conversations",
    "sweep": "measure many sub-models on several tasks, with a report",
    "search": "find the best sub-models under budgets",
    "generate": "answer a prompt",
    "data_preview": "show rows as they are trained on, and how long all are",
    "demo": "show all of it on real text, in minutes",
    "merge": "fold an adapter into the weights",
}
HARNESS = ("lm_eval", "harness")  # the command of lm-evaluation-harness, given our models: no recipe with a config
UNKNOWN_RECIPE = 2  # exit status
INTERRUPTED = 130  # the same, as of shells: Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipe that the first argument names; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = (HARNESS[1], words[1:]) if words[0] == HARNESS[0] else parted(words)
    if name not in RECIPES and words[0] != HARNESS[0]:
        known = [spoken(recipe) for recipe in RECIPES]
        near = difflib.get_close_matches(name, known, n=1) or [one for one in known if one.split()[0] == name]
        hint = f"; did you mean '{near[0]}'?" if near else ""
        print(f"error: there is no recipe '{name}'; there are {', '.join(known)}{hint}", file=sys.stderr)
        return UNKNOWN_RECIPE
    try:
        # Imported late: the list of recipes should not wait for torch.
        return importlib.import_module(f"recipes.{name}").main(rest)
    except KeyboardInterrupt:  # meanwhile: a recipe that has begun says so itself
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def parted(words: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe that a command line begins with, in one word or two, and what is told to it."""
    both = "_".join(words[:2])
    return (both, list(words[2:])) if both in RECIPES and len(words) > 1 else (words[0], list(words[1:]))


def spoken(name: str) -> str:
    """A recipe's name as its user writes it."""
    return name.replace("_", " ")


def schema_of(name: str) -> type:
    """What the recipe ``name`` can be told: the dataclass beside its ``run``, called by its name, as TrainRecipe."""
    title = "".join(map(str.capitalize, name.split("_")))
    return getattr(importlib.import_module(f"recipes.{name}"), f"{title}Recipe")


def usage() -> str:
    """What ``matslice`` says when asked nothing."""
    width = max(map(len, RECIPES))
    lines = [f"  matslice {spoken(name):<{width}}  {about}" for name, about in RECIPES.items()]
    return "\n".join((
        "Fine-tune Gemma 3n as the MatFormer it is, and slice it to the size you need.", "",
        *lines, f"  matslice {HARNESS[0]:<{width}}  run lm-evaluation-harness on sub-models: docs/harness.md", "",
        "matslice NAME --help shows what a recipe can be told, as key=value after its name.",
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
