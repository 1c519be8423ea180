# SPDX-License-Identifier: Apache-2.0
"""What the study of search methods found, in words, a table and a picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.bench.search_measure import Losses
from tests.bench.search_model import CONFIG, ROW_TOKENS, WIDTHS, Scale, Split
from trainer.search.methods import SearchMethod

AIM_NATS = 0.002
LIBRARIES = ("torch", "numpy")
DPI = 150
INCHES = (11.0, 4.2)
TICKS = (10, 20, 30, 45, 65, 100, 160)  # evaluations
DEFAULT = str(SearchMethod.surrogate)
EVERYTHING = "all of them"  # the name of the row that no search can beat


@dataclass(frozen=True, kw_only=True)
class Row:
    """One search.

    Args:
        picks: For each budget the place of what was chosen among all sub-models.
        by_calibration: The same if the calibration split alone had chosen among what was measured on it.
        search_regrets: For each budget, how far the best that was measured is from the best there is, on the split
            that was searched.
        r2: Of the surrogate, on all sub-models that it was not fitted to.
    """

    name: str
    picks: Int64[np.ndarray, " budgets"]
    by_calibration: Int64[np.ndarray, " budgets"]
    search_regrets: Float64[np.ndarray, " budgets"]
    evaluations: int
    calibration_evaluations: int
    r2: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Study:
    """All searches, and the truth."""

    losses: Losses
    prices: Int64[np.ndarray, " points"]
    budgets: Sequence[int]
    rows: Sequence[Row]
    best: Float64[np.ndarray, " budgets"]  # on the report split
    by_limit: Mapping[str, Sequence[tuple[int, float]]]
    limit: int
    top_k: int
    resamplings: int
    dealt_anew: Mapping[str, Sequence[tuple[float, float]]]

    def names(self) -> list[str]:
        """Of methods, in order."""
        return list(dict.fromkeys(row.name for row in self.rows))

    def of(self, name: str) -> list[Row]:
        """The searches of a method, of which there are several where chance plays a part."""
        return [row for row in self.rows if row.name == name]

    def report_regrets(self, row: Row) -> Float64[np.ndarray, " budgets"]:
        """How far what was chosen is from the best there is, on the split that nobody saw."""
        return self.losses.of(Split.report)[row.picks] - self.best

    def standard_error(self, row: Row) -> float:
        """Of the mean of ``report_regrets``, by the luck of which rows the split has; resampled."""
        rows = self.losses.rows[Split.report]
        mean = rows.mean(axis=1)
        optima = [int(np.argmin(np.where(self.prices <= budget, mean, np.inf))) for budget in self.budgets]
        differences = (rows[row.picks] - rows[optima]).mean(axis=0)
        chance = np.random.default_rng(0)
        drawn = chance.integers(len(differences), size=(self.resamplings, len(differences)))
        return float(differences[drawn].mean(axis=1).std())


PAGE = """\
# Searching sub-models: how near each method comes to the best there are

A Gemma 3n of {layers} layers (hidden size {dim}, attention, AltUp, LAuReL, per-layer embeddings, shared keys and
values as in the large ones) whose layers have {widths} neurons, each any of these: {count:,} sub-models. It was trained
for {steps:,} steps of {tokens:,} bytes on the source of Python's standard library, each step as one sub-model drawn by
chance. Then **all of them** were measured on three splits of files that it never saw ({search_bytes:,} bytes to search,
{calibration_bytes:,} to calibrate, {report_bytes:,} to report). On the report split they lose between {lowest:.3f} and
{highest:.3f} nats a byte.

Every method searches once for {budgets} budgets of effective parameters at the same time, spread evenly over the
space, and may measure {limit} sub-models on the search split, which is {share:.1%} of them. The best {top_k} of each
budget are measured again on the calibration split, and the mean of both splits chooses among them. Regret is how many
nats a byte more than the best sub-model within the budget the chosen one loses:

* **searched**: on the search split itself, the best that was measured against the best there is. This is what a method
  is to blame for.
* **report**: on the report split, what was chosen against the best there is *on the report split*, which no search
  could know. Choosing by one text and reporting on another costs something; measuring all of them on the search and
  the calibration split, and taking the best by both, costs that much (last line). Less is had only by luck or by
  knowing beforehand what shapes are good. Behind ± is one standard error, of the rows that the split happens to have.

| method | evaluations | + calibration | searched, mean | searched, worst | report, mean | report, worst | R² | s |
|---|---|---|---|---|---|---|---|---|
{table}

`surrogate` is the default. R² is that of its model of losses on the search split, over all sub-models that it was not
fitted to. `evolutionary` is the mean of {seeds} seeds, the others do the same with any. Seconds are without measuring.

{verdicts}

## With the rows dealt out anew

Which rows are searched and which reported on decides much of the regret on the report split. So the rows of all three
splits were dealt out by chance {deals} times, into splits as large as before, and all was searched again. Means of all
budgets and deals, on the report split; behind ± one standard error over the deals, which share their rows and so are
less different than deals of new text. Beside it what the calibration split alone would have chosen among the same
sub-models.

| method | chosen by both splits | chosen by calibration alone | difference |
|---|---|---|---|
{deal_table}

{rule}

![Regret by evaluations, and the frontier](search.png)

Run on {date} by `{command}`; {system}, Python {python}, {libraries}; {cores} processor cores.
"""


def write(study: Study, scale: Scale, document: Path, *, command: str) -> None:
    """Write the page, and the picture beside it."""
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(page(study, scale, command), encoding="utf-8")
    draw(study, document.with_suffix(".png"))


def page(study: Study, scale: Scale, command: str) -> str:
    """The document."""
    report = study.losses.of(Split.report)
    return PAGE.format(
        layers=CONFIG.text.num_hidden_layers, dim=CONFIG.text.hidden_size,
        widths=f"{', '.join(map(str, WIDTHS[:-1]))} or {WIDTHS[-1]}", count=len(report), steps=scale.steps,
        tokens=scale.batch_size * ROW_TOKENS, search_bytes=study.losses.num_bytes(Split.search),
        calibration_bytes=study.losses.num_bytes(Split.calibration), report_bytes=study.losses.num_bytes(Split.report),
        lowest=report.min(), highest=report.max(), budgets=len(study.budgets), limit=study.limit,
        share=study.limit / len(report), top_k=study.top_k,
        table="\n".join(table_line(study, name) for name in study.names()),
        deals=len(study.dealt_anew[EVERYTHING]), rule=rule(study),
        deal_table="\n".join(deal_line(study, name) for name in study.names()),
        seeds=len(study.of(SearchMethod.evolutionary)), verdicts="\n".join(verdicts(study)),
        date=datetime.now(UTC).date(), command=command, system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(), libraries=", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        cores=os.cpu_count(),
    )  # fmt: skip


def table_line(study: Study, name: str) -> str:
    """A method's line."""
    rows = study.of(name)
    searched = np.array([row.search_regrets for row in rows])
    report = np.array([study.report_regrets(row) for row in rows])
    error = float(np.mean([study.standard_error(row) for row in rows]))
    evaluations, more = (
        f"{np.mean(numbers):,.0f}"
        for numbers in ([row.evaluations for row in rows], [row.calibration_evaluations for row in rows])
    )
    known = [row.r2 for row in rows if row.r2 is not None]
    r2 = f"{np.mean(known):.4f}" if known else ""
    cells = [
        shown(name), evaluations, more, f"{searched.mean():.4f}",
        f"{searched.max():.4f}", f"{report.mean():.4f} ± {error:.4f}", f"{report.max():.4f}", r2,
        f"{np.mean([row.seconds for row in rows]):.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def deal_line(study: Study, name: str) -> str:
    """What a method comes to over many deals of the rows."""
    both, alone = np.array(study.dealt_anew[name]).T
    cells = [f"{told.mean():.5f} ± {told.std() / len(told) ** 0.5:.5f}" for told in (both, alone, both - alone)]
    return f"| {shown(name)} | {' | '.join(cells)} |"


def rule(study: Study) -> str:
    """Which split should choose, for the default method."""
    both, alone = np.array(study.dealt_anew[DEFAULT]).T.mean(axis=1)
    means = {name: np.array(deals)[:, 0].mean() for name, deals in study.dealt_anew.items()}
    better = [name for name in study.names() if name != EVERYTHING and means[name] < means[DEFAULT]]
    return (
        f"Choosing by both splits leaves `{DEFAULT}` {'less' if both < alone else '**more**'} regret than choosing by"
        f" calibration alone; a search chooses by both.{''.join(beside(study, name) for name in better)}"
    )


def beside(study: Study, name: str) -> str:
    """How much less regret than the default method another one left on the same deals."""
    less = np.subtract(*(np.array(study.dealt_anew[one])[:, 0] for one in (DEFAULT, name)))
    error = float(less.std(ddof=1)) / len(less) ** 0.5
    return (
        f" On the same deals {shown(name)} leaves {less.mean():.5f} nats less than `{DEFAULT}`, with a standard error"
        f" over {len(less)} deals of {error:.5f}; deals share their rows, so that of new text is larger."
    )


def shown(name: str) -> str:
    """The name of a method as it is written in a configuration."""
    return f"`{name}`" if name in SearchMethod.__members__ else name


def verdicts(study: Study) -> list[str]:
    """Whether what was aimed at was reached."""
    (row,) = study.of(DEFAULT)
    report = study.report_regrets(row)
    figures = (
        ("searched, mean", row.search_regrets.mean()), ("searched, worst budget", row.search_regrets.max()),
        ("report, mean", report.mean()), ("report, worst budget", report.max()),
    )  # fmt: skip
    aim = (
        f"Aimed at by the default method: a regret of at most {AIM_NATS} nats with at most {study.limit} evaluations."
        f" It used {row.evaluations} on the search split, for all budgets together, and"
        f" {row.calibration_evaluations} on the calibration split besides.\n"
    )
    judged = [f"* {what}: {value:.5f}, {'met' if value <= AIM_NATS else '**missed**'}" for what, value in figures]
    (whole,) = study.of(EVERYTHING)
    if (floor := float(study.report_regrets(whole).mean())) <= AIM_NATS:
        return [aim, *judged]
    why = (
        f"\nMeasuring all sub-models misses the aim on the report split, too ({floor:.4f} on average): what is left"
        " there is how little text the splits have, and the methods cannot be told apart by it."
    )
    return [aim, *judged, why]


def draw(study: Study, path: Path) -> None:
    """Regret by evaluations, and losses by budget."""
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_regrets(study, left)
    draw_frontier(study, right)
    figure.savefig(path, dpi=DPI)


def draw_regrets(study: Study, axes: Axes) -> None:
    """How much each method still misses after so many evaluations."""
    for name, points in study.by_limit.items():
        spent, regrets = zip(*points, strict=True)
        axes.plot(spent, np.maximum(regrets, 1e-5), marker="o", markersize=3.5, label=name)
    axes.axhline(AIM_NATS, color="grey", linewidth=0.8, linestyle="--")
    axes.axvline(study.limit, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks(TICKS, list(map(str, TICKS)))
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.set_xlabel("sub-models measured, for all budgets together")
    axes.set_ylabel("mean regret on the search split (nats per byte)")
    axes.set_title("Regret; at 10⁻⁵ there is next to none. Dashed: what is aimed at", fontsize=9)
    axes.legend(fontsize=8)


def draw_frontier(study: Study, axes: Axes) -> None:
    """What each method chose, on the split that nobody saw, among all there are."""
    losses = study.losses.of(Split.report)
    thousands = study.prices / 1000
    axes.scatter(thousands, losses, s=1, color="lightgrey", rasterized=True, label="all sub-models")
    axes.plot(np.array(study.budgets) / 1000, study.best, color="black", linewidth=1, label="best there is")
    for name in (DEFAULT, str(SearchMethod.paper), str(SearchMethod.official)):
        picks = study.of(name)[0].picks
        axes.plot(np.array(study.budgets) / 1000, losses[picks], marker="o", markersize=3, linewidth=0.8, label=name)
    axes.set_xlabel("budget (thousands of effective parameters)")
    axes.set_ylabel("loss on the report split (nats per byte)")
    axes.set_title(f"What was chosen, after at most {study.limit} evaluations", fontsize=9)
    axes.legend(fontsize=8)
