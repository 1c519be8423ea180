# SPDX-License-Identifier: Apache-2.0
"""Check a checkpoint: names, shapes, checksums, lineage, and against its parent every byte. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.slicing.verify import verify
from recipes.locate import find_checkpoint
from recipes.program import start


@dataclass(kw_only=True, slots=True)
class VerifyRecipe:
    """Check that a checkpoint is whole, and the slice that it says it is. Reads every byte of it."""

    checkpoint: str  # directory or hub name
    parent: Path | None = None  # directory it was cut out of: compare every kept byte, too


def run(recipe: VerifyRecipe) -> None:
    """Check, and say what was found in order."""
    verify(find_checkpoint(recipe.checkpoint), parent=recipe.parent)
    print(f"verified: {recipe.checkpoint}")


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; return the exit status."""
    return start("verify", VerifyRecipe, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
