# SPDX-License-Identifier: Apache-2.0
"""Names of modules as written into an adapter: each names one module in every published layout."""

from __future__ import annotations

from collections.abc import Iterable

DECODER = "model.language_model."


def travelling_name(path: str) -> str:
    """A module's path as written into an adapter: it names one module in every published layout.

    PEFT matches the end of a path at a dot, so ``layers.0.mlp.up_proj`` is found below
    ``model.language_model`` (multimodal, and our own) and below ``model`` (text-only transformers).
    """
    return path.removeprefix(DECODER).removeprefix("model.")


def travelling_names(paths: Iterable[str]) -> list[str]:
    """Travelling names of these modules, each once, layer 2 before layer 10."""
    return sorted(set(map(travelling_name, paths)), key=natural)


def natural(path: str) -> list[tuple[int, str]]:
    """A sorting key under which numbers in a path count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]
