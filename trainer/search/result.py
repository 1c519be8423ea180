# SPDX-License-Identifier: Apache-2.0
"""What a search found: the best sub-model for each budget, the frontier, and what finding it took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from model.config import TextConfig
from model.slicing.config import slice_text_config
from model.slicing.count import Layout, text_shapes
from model.slicing.plan import count
from model.slicing.propose import name_of
from model.slicing.spec import SliceConfig, SliceSpec
from trainer.search.cost import Resource
from trainer.search.methods import SearchMethod


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sub-model that was measured on both splits.

    Args:
        cost: By the table of costs; latency in nanoseconds.
        loss: On the search split, where it was found: rather too good.
        calibration_loss: On the calibration split, which had no part in finding it.
        measured_cost: Of the whole sub-model where that was measured, as latency is; None: the table is exact.
    """

    spec: SliceSpec
    cost: int
    loss: float
    calibration_loss: float
    measured_cost: int | None = None

    @property
    def price(self) -> int:
        """What counts against a budget."""
        return self.cost if self.measured_cost is None else self.measured_cost

    @property
    def judged_loss(self) -> float:
        """What it is chosen by: the mean of both splits.

        The search split is rather too good about all the best of a budget alike, for each was found on it. What it
        says of the difference between two of them is therefore as good as what the calibration split says.
        """
        return (self.loss + self.calibration_loss) / 2

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "spec": {
                "name": self.spec.name, "kept_layers": list(self.spec.kept_layers),
                "ffn_widths": list(self.spec.ffn_widths),
            },
            "cost": self.cost, "measured_cost": self.measured_cost, "loss": self.loss,
            "calibration_loss": self.calibration_loss, "judged_loss": self.judged_loss,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The best that was found for a budget."""

    budget: int
    found: Found


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Args:
        picks: One for each budget, ascending.
        frontier: Of all that was measured on both splits, what nothing beats in both cost and judged loss; by
            ascending cost.
        reference: The dearest cost of the space, and the cheapest point's judged loss: the corner that the hypervolume
            is measured from.
        evaluations: Sub-models measured on the search split.
        calibration_evaluations: Those measured on the calibration split.
        surrogate_r2: How well losses were foretold that were measured afterwards; None without a surrogate.
    """

    method: SearchMethod
    resource: Resource
    seed: int
    picks: tuple[Pick, ...]
    frontier: tuple[Found, ...]
    reference: tuple[int, float]
    evaluations: int
    calibration_evaluations: int
    surrogate_r2: float | None

    @property
    def hypervolume(self) -> float:
        """The area that the frontier beats, up to the reference: cost times nats."""
        return hypervolume([(one.price, one.judged_loss) for one in self.frontier], self.reference)

    def record(self) -> dict[str, Any]:
        """As JSON values; costs are whole numbers, latencies in nanoseconds."""
        return {
            "method": str(self.method), "resource": str(self.resource), "seed": self.seed,
            "picks": [{"budget": pick.budget, **pick.found.record()} for pick in self.picks],
            "frontier": [one.record() for one in self.frontier], "reference": list(self.reference),
            "hypervolume": self.hypervolume, "evaluations": self.evaluations,
            "calibration_evaluations": self.calibration_evaluations, "surrogate_r2": self.surrogate_r2,
        }  # fmt: skip


def pareto(found: Iterable[Found]) -> tuple[Found, ...]:
    """What nothing beats in price and judged loss both, the cheapest first."""
    best: list[Found] = []
    for one in sorted(found, key=lambda one: (one.price, one.judged_loss)):
        if not best or one.judged_loss < best[-1].judged_loss:
            best.append(one)
    return tuple(best)


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area of all that some point is no worse than in both coordinates, up to the reference; exact.

    Points that are worse than the reference in one of them add nothing.
    """
    most, height = reference
    area = 0.0
    for cost, loss in sorted(points):
        if cost < most and loss < height:
            area += (most - cost) * (height - loss)
            height = loss
    return area


def written_slices(specs: Iterable[SliceSpec], config: TextConfig) -> Iterator[SliceConfig]:
    """Sub-models as files of ``conf/slice`` hold them, each once, named by their sizes as budgets count them.

    Those that would have the same name are numbered.
    """
    taken: dict[str, int] = {}
    for spec in dict.fromkeys(specs):
        effective = count(text_shapes(slice_text_config(config, spec), Layout.used)).effective
        name = name_of(effective)
        taken[name] = taken.get(name, 0) + 1
        kept, widths = set(spec.kept_layers), list(spec.ffn_widths)
        yield SliceConfig(
            name=name if taken[name] == 1 else f"{name}_{taken[name]}",
            skip_layers=[layer for layer in range(config.num_hidden_layers) if layer not in kept],
            ffn_widths=widths[:1] if len(set(widths)) == 1 else widths,
        )


def slice_file(written: SliceConfig, comments: Sequence[str]) -> str:
    """The content of a file for ``conf/slice``."""
    lines = [f"# {comment}" for comment in comments]
    return "\n".join([
        *lines, f"name: {written.name}", f"skip_layers: {written.skip_layers}", f"ffn_widths: {written.ffn_widths}", "",
    ])  # fmt: skip
