# SPDX-License-Identifier: Apache-2.0
"""A model of the loss, fitted to few measurements: what each choice adds, and what choices add together.

It is ridge regression, written by its kernel. What it may learn of one choice alone is hardly held back; what it may
learn of two is held back the more the less either matters, since layers that hardly matter alone hardly do so
together; and one term says how the loss bends as all of it is widened. How much each of them counts, and how much of
a measurement is noise, is what predicts measurements best that are left out of the fit, one at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64

from trainer.search.space import Point

PAIRS = (0.0, 0.03, 0.1, 0.3, 1.0)  # how much two choices may do together, beside what each does
BENDS = (0.0, 0.1, 1.0, 10.0)
NOISES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of the spread of what is measured
ALONE = 1.0
LEAST_SCALE = 0.05  # of the mean sensitivity: a choice that seemed not to matter may do so elsewhere

Table = Sequence[Sequence[float]]  # of each group, what each choice is believed to add


@dataclass(frozen=True)
class Strengths:
    """How much each part of the kernel counts."""

    pairs: float
    bend: float
    noise: float


@dataclass(frozen=True)
class Positions:
    """Where each choice stands on a line, from the narrowest to the widest, in units of what the group is worth.

    Args:
        place: By group and choice, padded with zeros; around 0 in each group.
        alone: By group and two choices: how alike what they add alone is.
        mean: By group and choice: what they are believed to add, from which the fit departs.
    """

    place: Float64[np.ndarray, "groups choices"]
    alone: Float64[np.ndarray, "groups choices choices"]
    mean: Float64[np.ndarray, "groups choices"]

    @classmethod
    def of(cls, believed: Table) -> Positions:
        """From what is believed of each choice alone."""
        most = max(map(len, believed))
        mean, place = np.zeros((len(believed), most)), np.zeros((len(believed), most))
        for number, values in enumerate(believed):
            mean[number, : len(values)] = values
        spreads = np.array([max(values) - min(values) for values in believed])
        scales = spreads + LEAST_SCALE * max(float(spreads.mean()), 1e-12)
        unit = max(float(scales.max()), 1e-12)
        alone = np.zeros((len(believed), most, most))
        for number, values in enumerate(believed):
            if (count := len(values)) > 1:
                line = np.linspace(0.5, -0.5, count)
                measured = np.array(values) - (max(values) + min(values)) / 2
                # Half what was measured, half even steps: no two choices stand at the same place.
                place[number, :count] = (0.5 * measured + 0.5 * scales[number] * line) / unit
                alone[number, :count, :count] = np.eye(count) * (scales[number] / unit) ** 2
        return cls(place, alone, mean)


@dataclass(frozen=True)
class Surrogate:
    """Predicts losses of points.

    Args:
        positions: Of choices.
        strengths: Of the parts of the kernel.
        points: Those that it was fitted to.
        weights: Of each of them.
        offset: What is added to every prediction.
        scale: Of predictions, in nats.
        left_out: Mean squared error of measurements that were left out of the fit, one at a time, in nats squared.
    """

    positions: Positions
    strengths: Strengths
    points: Int64[np.ndarray, "measured groups"]
    weights: Float64[np.ndarray, " measured"]
    offset: float
    scale: float
    left_out: float

    @classmethod
    def fit(cls, believed: Table, points: Sequence[Point], losses: Sequence[float]) -> Surrogate:
        """To what was measured, with the strengths that predict best what is left out."""
        positions, chosen = Positions.of(believed), np.array(points, dtype=np.int64)
        rest = np.array(losses) - prior(positions, chosen)
        offset, scale = float(rest.mean()), max(float(rest.std()), 1e-12)
        target = (rest - offset) / scale
        parts = kernel_parts(positions, chosen, chosen)
        best: tuple[float, Strengths, Float64[np.ndarray, " measured"]] | None = None
        for pairs, bend in itertools.product(PAIRS, BENDS):
            values, vectors = np.linalg.eigh(combined(parts, Strengths(pairs, bend, 0.0)))
            turned = vectors.T @ target
            for noise in NOISES:
                damped = 1 / (np.maximum(values, 0) + noise)
                weights = vectors @ (damped * turned)
                # A weight over its diagonal entry of the inverse is the error where its own measurement is left out.
                error = float(np.mean(np.square(weights / (np.square(vectors) @ damped))))
                if best is None or error < best[0]:
                    best = error, Strengths(pairs, bend, noise), weights
        assert best is not None
        return cls(positions, best[1], chosen, best[2], offset, scale, best[0] * scale**2)

    def predict(self, points: Sequence[Point] | Int64[np.ndarray, "points groups"]) -> Float64[np.ndarray, " points"]:
        """The losses of points."""
        return self.summed.at(np.asarray(points, dtype=np.int64))

    @cached_property
    def summed(self) -> Summed:
        """What is predicted, without the points that it was fitted to."""
        place, groups = self.positions.place, np.arange(self.points.shape[1])
        there, weights = place[groups, self.points], self.scale * self.weights
        alone = self.positions.mean + ALONE * place * (weights @ there)[:, None]
        for group in groups:
            alone[group] += ALONE * self.positions.alone[group][:, self.points[:, group]] @ weights
        between = self.strengths.pairs * (there.T * weights) @ there
        np.fill_diagonal(between, 0)
        bend = self.strengths.bend * float(weights @ np.square(there.sum(axis=1)))
        return Summed(self.offset + ALONE * float(weights.sum()), place, alone, between, bend)


@dataclass(frozen=True)
class Summed:
    """The predictions of a surrogate, its kernel multiplied out and summed over the points that it was fitted to.

    What is left is what each choice adds, what each two add, and the bend: asking takes as long after many
    measurements as after few.

    Args:
        constant: What every point has.
        place: As in ``Positions``.
        alone: By group and choice.
        between: What the places of two groups are worth together.
        bend: What the square of the sum of all places is worth.
    """

    constant: float
    place: Float64[np.ndarray, "groups choices"]
    alone: Float64[np.ndarray, "groups choices"]
    between: Float64[np.ndarray, "groups groups"]
    bend: float

    def at(self, points: Int64[np.ndarray, "points groups"]) -> Float64[np.ndarray, " points"]:
        """The predictions for points."""
        groups = np.arange(points.shape[1])
        place = self.place[groups, points]
        together = ((place @ self.between) * place).sum(axis=1) / 2  # each two stand twice in it
        bent = self.bend * np.square(place.sum(axis=1))
        return self.constant + self.alone[groups, points].sum(axis=1) + together + bent


def prior(positions: Positions, points: Int64[np.ndarray, "points groups"]) -> Float64[np.ndarray, " points"]:
    """What is believed of points before anything is fitted, up to a constant."""
    return positions.mean[np.arange(points.shape[1]), points].sum(axis=1)


Parts = tuple[Float64[np.ndarray, "left right"], ...]


def kernel_parts(
    positions: Positions, left: Int64[np.ndarray, "left groups"], right: Int64[np.ndarray, "right groups"]
) -> Parts:
    """How alike points are: in a constant and choices alone, in pairs of choices, and in how wide they are as a whole.

    The sum over all pairs of groups of products is had from sums over groups: twice it is the square of their sum less
    the sum of their squares.
    """
    groups = np.arange(left.shape[1])
    place_left, place_right = positions.place[groups, left], positions.place[groups, right]
    alone = np.ones((len(left), len(right)))
    for group in groups:
        alone += positions.alone[group][left[:, group][:, None], right[:, group][None, :]]
    products = place_left @ place_right.T
    squares = np.square(place_left) @ np.square(place_right).T
    size_left, size_right = place_left.sum(axis=1), place_right.sum(axis=1)
    widths = np.outer(size_left, size_right)
    return alone, (np.square(products) - squares) / 2, np.square(widths), products


def combined(parts: Parts, strengths: Strengths) -> Float64[np.ndarray, "left right"]:
    """One kernel of its parts."""
    alone, pairs, bend, line = parts
    return ALONE * (alone + line) + strengths.pairs * pairs + strengths.bend * bend
