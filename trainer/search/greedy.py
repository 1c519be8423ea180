# SPDX-License-Identifier: Apache-2.0
"""One step after the other from the cheapest point on, always the one that gains most for what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.search.problem import Problem
from trainer.search.space import Point, with_choice

Step = tuple[int, int]  # a group, and the choice that it is widened to
BESIDE = -1  # when a gain was measured that was measured elsewhere than on the way


@dataclass(frozen=True)
class Gain:
    """What a step is worth: nats gained for what it costs, and after how many steps of the way that was measured."""

    ratio: float
    measured_at: int


def greedy(problem: Problem) -> None:
    """Widen one group by one step at a time, for each budget as far as it goes; all share the way to where it ends.

    A step's gain hardly grows on the way, so only the most promising is measured anew, until it stays so: the lazy
    evaluation of Minoux (1978). The first step of the way that a budget has no room for is where the budget leaves it:
    from there it goes on by itself, by the best of the steps that still fit, judged by what was measured last. When
    nothing more may be measured, all goes on like that; what the ends need is kept back.
    """
    way = Way(problem, problem.costs.floor)
    problem.measure([way.point])
    ends = []
    for budget in problem.budgets:
        while (step := way.best(problem.budgets[-1])) and way.price_of(step) <= budget:
            way.go(step)
        ends.append(way.end(budget))
    problem.measure(ends)


@dataclass
class Way:
    """Where greedy steps lead.

    Args:
        problem: Measures.
        point: Where the way is.
    """

    problem: Problem
    point: Point
    steps: int = 0
    gains: dict[Step, Gain] = field(default_factory=dict)  # of steps that were measured

    @property
    def may_measure(self) -> bool:
        """Whether more is left than the ends of all budgets need."""
        return self.problem.left > len(self.problem.budgets)

    def ahead(self, point: Point, budget: int) -> dict[Step, Point]:
        """The steps up from a point that a budget has room for, and where they lead."""
        costs = self.problem.costs
        return {
            (number, moved[number]): moved for number, moved in self.problem.space.moves(point)
            if moved[number] > point[number] and costs.at(moved) <= budget
        }  # fmt: skip

    def price_of(self, step: Step) -> int:
        """What it costs where a step of the way leads."""
        return self.problem.costs.at(with_choice(self.point, *step))

    def best(self, budget: int) -> Step | None:
        """The step of the way that gains most for what it costs; None where none fits a budget."""
        ahead = self.ahead(self.point, budget)
        for step in ahead:
            if step not in self.gains:
                self.measure(self.point, step)
        if not ahead:
            return None
        best = max(ahead, key=self.ratio)
        while best in self.gains and self.gains[best].measured_at < self.steps and self.measure(self.point, best):
            best = max(ahead, key=self.ratio)
        return best

    def go(self, step: Step) -> None:
        """Take a step of the way."""
        self.point = with_choice(self.point, *step)
        self.steps += 1
        if self.may_measure:
            self.problem.measure([self.point])

    def end(self, budget: int) -> Point:
        """Where a budget ends that leaves the way here."""
        point = self.point
        while ahead := self.ahead(point, budget):
            for step in ahead:
                if step not in self.gains:
                    self.measure(point, step)
            point = ahead[max(ahead, key=self.ratio)]
        return point

    def ratio(self, step: Step) -> float:
        """What a step is believed to be worth; of one that was never measured, what the step before it was."""
        number, choice = step
        known = (self.gains[number, one] for one in range(choice, -1, -1) if (number, one) in self.gains)
        return next((gain.ratio for gain in known), float("-inf"))

    def measure(self, point: Point, step: Step) -> bool:
        """Measure what a step from a point is worth, if so many may be measured."""
        problem, moved = self.problem, with_choice(point, *step)
        if point not in problem.seen and not (self.may_measure and problem.measure([point])):
            return False
        if moved not in problem.seen and not (self.may_measure and problem.measure([moved])):
            return False
        when = self.steps if point == self.point else BESIDE
        more = problem.costs.at(moved) - problem.costs.at(point)
        self.gains[step] = Gain((problem.seen[point] - problem.seen[moved]) / max(more, 1), when)
        return True
