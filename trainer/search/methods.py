# SPDX-License-Identifier: Apache-2.0
"""The ways of searching. Each measures what it thinks worth it; what is best of that is not its business."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from trainer.search.evolutionary import evolutionary
from trainer.search.greedy import greedy
from trainer.search.heuristics import official, paper
from trainer.search.problem import Problem
from trainer.search.refine import surrogate
from trainer.search.sensitivity import sensitivity


class SearchMethod(StrEnum):
    """How points worth measuring are found."""

    surrogate = "surrogate"  # sensitivities from both ends, then rounds of a fitted model of losses
    sensitivity = "sensitivity"  # what each choice is worth alone, and the exact knapsack over it
    greedy = "greedy"  # the step that gains most for what it costs, again and again
    evolutionary = "evolutionary"  # regularised evolution
    paper = "paper"  # MatFormer's heuristic: widths that never narrow with depth, as even as can be
    official = "official"  # the order in which Google's published slices widen


METHODS: dict[SearchMethod, Callable[[Problem], None]] = {
    SearchMethod.surrogate: surrogate,
    SearchMethod.sensitivity: sensitivity,
    SearchMethod.greedy: greedy,
    SearchMethod.evolutionary: evolutionary,
    SearchMethod.paper: paper,
    SearchMethod.official: official,
}
