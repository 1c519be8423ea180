# SPDX-License-Identifier: Apache-2.0
"""Where a recipe writes: looked at before its work begins, which may be long."""

from __future__ import annotations

import os
from pathlib import Path

from model.errors import ConfigError


def check_place(output: Path, *, key: str = "output") -> None:
    """Raise ConfigError unless a directory or file ``output`` could be made; ``key`` is where it was written."""
    if output == Path():
        raise ConfigError(f"{key} is empty, or the working directory; give a name of its own, as in {key}=out/first")
    there = next(place for place in (output, *output.absolute().parents) if place.exists())
    if there != output and not there.is_dir():
        raise ConfigError(f"{key}: '{output}' cannot be made, '{there}' being a file; choose another place")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{key}: '{output}' cannot be made, '{there}' being read-only for you; choose another place")


def check_directory(output: Path, *, key: str = "output") -> None:
    """Raise ConfigError unless ``output`` is a directory, or could be made one; ``key`` is where it was written."""
    check_place(output, key=key)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{key}: '{output}' is a file; give a directory")


def check_new_directory(output: Path, *, overwrite: bool | None = None) -> None:
    """Raise ConfigError if something would be overwritten that must not be, or ``output`` cannot be made.

    Args:
        output: Where a recipe is to write a directory.
        overwrite: Whether its user allows that what is there is replaced; None if the recipe offers no such thing.
    """
    check_place(output)
    if not overwrite and (output.is_file() or (output.is_dir() and any(output.iterdir()))):
        hint = "" if overwrite is None else ", or set overwrite=true to replace it"
        raise ConfigError(f"output: '{output}' is already there; choose another name, or remove it{hint}")


def check_new_file(output: Path, *, key: str = "output") -> None:
    """Raise ConfigError if something is there, or ``output`` cannot be made; ``key`` is where it was written."""
    check_place(output, key=key)
    if output.exists():
        kind = "is a directory; give a file" if output.is_dir() else "is already there; choose another name"
        raise ConfigError(f"{key}: '{output}' {kind}")
