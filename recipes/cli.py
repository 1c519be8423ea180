# SPDX-License-Identifier: Apache-2.0
"""The ``matslice`` command: ``matslice NAME key=value …`` is ``python -m recipes.NAME key=value …``."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

RECIPES = {
    "train": "train a model, or an adapter on it, at one size or elastically",
    "plan": "tell what a sub-model costs, or which one a budget allows",
    "slice": "cut a smaller model out of a checkpoint",
    "verify": "check a checkpoint: tensors, checksums, lineage",
    "evaluate": "measure sub-models on held-out conversations",
    "generate": "answer a prompt",
    "demo": "show all of it on real text, in minutes",
    "merge": "fold an adapter into the weights",
}
UNKNOWN_RECIPE = 2  # exit status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipe that the first argument names; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = words
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        print(f"error: there is no recipe '{name}'; there are {', '.join(RECIPES)}{hint}", file=sys.stderr)
        return UNKNOWN_RECIPE
    # Imported late: the list of recipes should not wait for torch.
    return importlib.import_module(f"recipes.{name}").main(rest)


def schema_of(name: str) -> type:
    """What the recipe ``name`` can be told: the dataclass beside its ``run``, called by its name, as TrainRecipe."""
    return getattr(importlib.import_module(f"recipes.{name}"), f"{name.capitalize()}Recipe")


def usage() -> str:
    """What ``matslice`` says when asked nothing."""
    width = max(map(len, RECIPES))
    lines = [f"  matslice {name:<{width}}  {about}" for name, about in RECIPES.items()]
    return "\n".join((
        "Fine-tune Gemma 3n as the MatFormer it is, and slice it to the size you need.", "",
        *lines, "",
        "matslice NAME --help shows what a recipe can be told, as key=value after its name.",
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
