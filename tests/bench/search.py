# SPDX-License-Identifier: Apache-2.0
"""How near each search method comes to the best sub-models there are, on a small elastic model of which all are known.

    python -m tests.bench.search [--scale small] [--threads 1] [--processes 1] [--output DIR] [--document FILE]

A Gemma 3n of eight layers is trained with any of three widths in any layer, and all 6,561 sub-models are measured, on
three splits. Then every method searches for 20 budgets at once, by looking up instead of measuring. Training takes ten
minutes and measuring forty on one quiet core; both go on where they were interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from rich.console import Console

from model.slicing.spec import Shape, SliceSpec
from tests.bench.search_measure import Losses, enumerated
from tests.bench.search_model import CONFIG, SCALES, WIDTHS, Split, all_specs, trained
from tests.bench.search_report import EVERYTHING, Row, Study, write
from trainer.search.cost import CostConfig, Costs, exact_costs
from trainer.search.evaluator import Evaluator
from trainer.search.methods import SearchMethod, least_evaluations
from trainer.search.problem import Problem, coefficient_of_determination
from trainer.search.refine import fitted
from trainer.search.search import search
from trainer.search.space import Point, Space, SpaceConfig

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "results" / "search.md"
NUM_BUDGETS, TOP_K, SEEDS = 20, 3, 5
LIMIT = 65  # evaluations: one hundredth of all
LIMITS = (20, 30, 45, LIMIT, 100, 160)  # for the picture
RESAMPLINGS = 1000
DEALS = 40  # of rows to splits


@dataclass(frozen=True)
class Truth:
    """All points, what they cost, and their losses everywhere."""

    costs: Costs
    points: Sequence[Point]
    prices: Int64[np.ndarray, " points"]
    place: Mapping[Shape, int]  # of each sub-model among all
    losses: Losses
    budgets: Sequence[int]

    @classmethod
    def of(cls, losses: Losses) -> Truth:
        """Put in order what was measured."""
        space = Space.of(SpaceConfig(widths=list(WIDTHS), skip=[]), CONFIG.text)
        costs = exact_costs(space, CONFIG, CostConfig(context_tokens=1))
        points = list(space)
        specs = [space.spec(point) for point in points]
        assert [spec.name for spec in specs] == [spec.name for spec in all_specs()]
        place = {spec.shape: number for number, spec in enumerate(specs)}
        prices = np.array([costs.at(point) for point in points])
        return cls(costs, points, prices, place, losses, costs.spread(NUM_BUDGETS))

    def evaluator(self, split: Split, limit: int | None = None) -> Evaluator:
        """Looks a split's losses up."""
        losses = self.losses.of(split)

        def measure(specs: Sequence[SliceSpec]) -> list[float]:
            return losses[self.places(specs)].tolist()

        return Evaluator(measure, limit=limit)

    def best(self, split: Split) -> Float64[np.ndarray, " budgets"]:
        """The lowest loss there is within each budget."""
        losses = self.losses.of(split)
        return np.array([losses[self.prices <= budget].min() for budget in self.budgets])

    def within(self, places: Sequence[int] | Int64[np.ndarray, " places"]) -> Iterator[Int64[np.ndarray, " some"]]:
        """Of these points, given by place, those that each budget has room for."""
        chosen = np.asarray(places)
        for budget in self.budgets:
            yield chosen[self.prices[chosen] <= budget]

    def places(self, specs: Sequence[SliceSpec]) -> Int64[np.ndarray, " specs"]:
        """Where sub-models stand among all of them."""
        return np.array([self.place[spec.shape] for spec in specs])


def run(truth: Truth, method: SearchMethod, limit: int, seed: int) -> Row:
    """One search, and how far from the truth it ends."""
    problem = Problem(
        costs=truth.costs, budgets=truth.budgets, evaluator=truth.evaluator(Split.search, limit), seed=seed
    )
    calibration = truth.evaluator(Split.calibration)
    begun = time.perf_counter()
    result = search(problem, method, calibration, top_k=TOP_K)
    seconds = time.perf_counter() - begun
    seen = np.array([problem.seen[problem.best(budget)[0]] for budget in truth.budgets])
    r2 = None
    if method is SearchMethod.surrogate:
        others = [number for number, point in enumerate(truth.points) if point not in problem.seen]
        told = fitted(problem).predict([truth.points[number] for number in others])
        r2 = coefficient_of_determination(told.tolist(), truth.losses.of(Split.search)[others].tolist())
    again = [truth.place[key] for key in calibration.known]
    return Row(
        name=str(method), picks=truth.places([pick.found.spec for pick in result.picks]),
        by_calibration=lowest(truth, again, truth.losses.of(Split.calibration)),
        search_regrets=seen - truth.best(Split.search), evaluations=result.evaluations,
        calibration_evaluations=result.calibration_evaluations, r2=r2, seconds=seconds,
    )  # fmt: skip


def lowest(
    truth: Truth, places: Sequence[int] | Int64[np.ndarray, " places"], losses: Float64[np.ndarray, " points"]
) -> Int64[np.ndarray, " budgets"]:
    """For each budget the place of the lowest loss."""
    return np.array([within[np.argmin(losses[within])] for within in truth.within(places)])


def everything(truth: Truth) -> Row:
    """What measuring all of them on both splits would choose: what regret is left then is not the search's doing."""
    found, calibration = truth.losses.of(Split.search), truth.losses.of(Split.calibration)
    every = range(len(found))
    return Row(
        name=EVERYTHING, picks=lowest(truth, every, found + calibration),
        by_calibration=lowest(truth, every, calibration), search_regrets=np.zeros(len(truth.budgets)),
        evaluations=len(found), calibration_evaluations=len(found), r2=None, seconds=0.0,
    )  # fmt: skip


def rows_of_study(truth: Truth) -> Iterator[Row]:
    """Every method at the allowance that is aimed at; where chance plays a part, for several seeds."""
    for method in SearchMethod:
        for seed in range(SEEDS if method is SearchMethod.evolutionary else 1):
            yield run(truth, method, LIMIT, seed)
    yield everything(truth)


def by_limit(truth: Truth) -> dict[str, list[tuple[int, float]]]:
    """Mean regret on the split that is searched, by how much may be measured.

    Chance plays a part in the default method only while it may not measure all of both ends.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for method in SearchMethod:
        for limit in LIMITS:
            if limit < least_evaluations(method, truth.costs.space, len(truth.budgets)):
                continue
            by_chance = method is SearchMethod.evolutionary or (method is SearchMethod.surrogate and limit < LIMIT)
            seeds = range(SEEDS if by_chance else 1)
            rows = [run(truth, method, limit, seed) for seed in seeds]
            spent = round(float(np.mean([row.evaluations for row in rows])))
            regret = float(np.mean([row.search_regrets.mean() for row in rows]))
            found.setdefault(str(method), []).append((spent, regret))
    return {name: sorted(dict(points).items()) for name, points in found.items()}


def dealt_anew(truth: Truth) -> Mapping[str, Sequence[tuple[float, float]]]:
    """Mean regrets on the report split if chance deals the rows of all three splits out anew, again and again.

    By method, for each deal: of what both splits choose, and of what the calibration split alone does.
    """
    held = truth.losses.rows
    rows, chance = np.concatenate(list(held.values()), axis=1), np.random.default_rng(0)
    ends = np.cumsum([part.shape[1] for part in held.values()])[:-1]
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(DEALS):
        parts = np.split(chance.permutation(rows.shape[1]), ends)
        dealt = Losses({split: rows[:, part] for split, part in zip(held, parts, strict=True)})
        other = dataclasses.replace(truth, losses=dealt)
        report, best = dealt.of(Split.report), other.best(Split.report)
        for row in (*(run(other, method, LIMIT, seed=0) for method in SearchMethod), everything(other)):
            means = [float((report[picks] - best).mean()) for picks in (row.picks, row.by_calibration)]
            found.setdefault(row.name, []).append((means[0], means[1]))
    return found


def study(losses: Losses) -> Study:
    """All that is told."""
    truth = Truth.of(losses)
    return Study(
        losses=losses, prices=truth.prices, budgets=truth.budgets, rows=list(rows_of_study(truth)),
        best=truth.best(Split.report), by_limit=by_limit(truth), limit=LIMIT, top_k=TOP_K, resamplings=RESAMPLINGS,
        dealt_anew=dealt_anew(truth),
    )  # fmt: skip


def main() -> None:
    """Train, measure all, search, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--threads", type=int, default=1, help="of training")
    parser.add_argument("--processes", type=int, default=1, help="that measure side by side")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "bench_search", help="of the run and the losses")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    scale, console = SCALES[options.scale], Console()
    model = trained(options.output / "run", scale, threads=options.threads)
    losses = enumerated(
        model, scale, options.output / "losses.npz", specs=all_specs(), processes=options.processes, console=console
    )
    write(study(losses), scale, options.document, command=f"python -m tests.bench.search --scale {options.scale}")
    console.print(f"wrote {options.document}")


if __name__ == "__main__":
    main()
