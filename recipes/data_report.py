# SPDX-License-Identifier: Apache-2.0
"""What is told of a whole data set before anything is trained on it: lengths, what is too long, what cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

from rich.markup import escape
from rich.table import Table

from model.errors import InputError
from trainer.data.config import DataConfig, LongRows, OnBadRow
from trainer.data.faults import NUM_SHOWN, Fault, in_lines
from trainer.data.lengths import Spread, bars
from trainer.data.mixture import held_out, times
from trainer.data.pack import Packs, pack

WIDEST_BAR = 40  # characters


@dataclass
class Tally:
    """One source as it is gone through.

    ``lengths`` are those before anything is cut, of every row that can be used; ``kept`` those of the rows that are
    trained on or held out, ``digests`` hashes of what each of them says, and ``learnt`` how many of its tokens are. A
    text that is too long is several of them.
    """

    name: str
    weight: float = 1.0
    lengths: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    learnt: list[int] = field(default_factory=list)
    num_long: int = 0
    num_truncated: int = 0
    num_with_media: int = 0
    faults: list[Fault] = field(default_factory=list)

    @classmethod
    def all_of(cls, tallies: Sequence[Tally]) -> Tally:
        """Several sources as one, each row counted once."""
        whole = cls("all")
        for one in tallies:
            whole.lengths += one.lengths
            whole.kept += one.kept
            whole.digests += one.digests
            whole.learnt += one.learnt
            whole.faults += one.faults
            for name in ("num_long", "num_truncated", "num_with_media"):
                setattr(whole, name, getattr(whole, name) + getattr(one, name))
        return whole

    @property
    def num_rows(self) -> int:
        """All rows, those that cannot be used included."""
        return len(self.lengths) + len(self.faults)

    def without(self, out: Iterator[bool]) -> Tally:
        """The same source without those of its kept rows that are held out, as ``out`` tells row by row."""
        left = [place for place, is_out in enumerate(islice(out, len(self.kept))) if not is_out]
        kept, digests, learnt = ([values[at] for at in left] for values in (self.kept, self.digests, self.learnt))
        return replace(self, kept=kept, digests=digests, learnt=learnt)

    @property
    def supervised(self) -> int:
        """Tokens that are learnt."""
        return sum(self.learnt)

    @property
    def share(self) -> float:
        """How much of what is trained on is learnt."""
        return self.supervised / max(sum(self.kept), 1)

    def as_json(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "rows": self.num_rows,
            "rows_bad": len(self.faults),
            "rows_too_long": self.num_long,
            "rows_truncated": self.num_truncated,
            "rows_trained_on": len(self.kept),
            "rows_with_media": self.num_with_media,
            "tokens": asdict(Spread.of(self.lengths)) if self.lengths else None,
            "histogram": [asdict(bar) for bar in bars(self.lengths)],
            "trained_tokens": sum(self.kept),
            "supervised_tokens": self.supervised,
            "supervised_share": self.share,
        }


@dataclass(frozen=True)
class Report:
    """All sources, and the settings that decide what becomes of their rows."""

    data: DataConfig
    sources: Sequence[Tally]

    @property
    def whole(self) -> Tally:
        """All that is trained on as one."""
        return Tally.all_of(self.trained_on)

    @cached_property
    def trained_on(self) -> list[Tally]:
        """The sources without what is held out of them."""
        out = iter(self.held_out)
        return [one.without(out) for one in self.sources]

    @cached_property
    def digests(self) -> list[bytes]:
        """What every row that is kept says, source by source."""
        return [digest for one in self.sources for digest in one.digests]

    @cached_property
    def held_out(self) -> list[bool]:
        """Of every row that is kept, source by source, whether it is measured on instead of learnt."""
        if self.data.held_out is None or self.refusal or not self.digests:
            return [False] * len(self.digests)
        return held_out(self.digests, self.data.held_out)

    @cached_property
    def refusal(self) -> str:
        """Why nothing can be held out, if it is to be; a run says no more than that."""
        try:
            if self.data.held_out is not None and self.digests:
                held_out(self.digests, self.data.held_out)
        except InputError as error:
            return str(error)
        return ""

    @property
    def packs(self) -> Packs | None:
        """The packs of an epoch, its sources taken as often as they weigh; None where nothing is packed."""
        if self.data.pack_budget is None:
            return None
        lengths = [
            one.kept[row] - 1  # the last token of a row is only ever a label
            for one in self.trained_on
            for row in times(len(one.kept), one.weight, seed=0, name=one.name)
        ]
        # Shares and equal lengths are drawn by a run's seed, which is not known here: its packs are about as full.
        return pack(lengths, budget=self.data.pack_budget, seed=0, shuffle=self.data.shuffle) if lengths else None

    def as_json(self) -> dict[str, Any]:
        """In plain values."""
        whole, packs = self.whole, self.packs
        return {
            **whole.as_json(),
            "max_length_tokens": self.data.max_length_tokens,
            "rows_held_out": sum(self.held_out),
            "held_out_refused": self.refusal or None,
            "packs": packs and {"packs": len(packs), "tokens": packs.budget, "share_filled": packs.share_filled},
            "long_rows": str(self.data.long_rows),
            "on_bad_row": str(self.data.on_bad_row),
            "bad_rows": [{"where": fault.where, "what": fault.what} for fault in whole.faults[:NUM_SHOWN]],
            "sources": {one.name: {"weight": one.weight, **one.as_json()} for one in self.trained_on},
        }


def parts(report: Report) -> Iterator[str | Table]:
    """What is said of the whole set, from top to bottom."""
    whole = report.whole
    media = f", {whole.num_with_media:,} with images or sound" if whole.num_with_media else ""
    yield f"[bold]{rows(whole.num_rows)}[/bold]{media}"
    if whole.lengths:
        spread = Spread.of(whole.lengths)
        yield (
            f"tokens: min {spread.min:,}, median {spread.median:,}, p90 {spread.p90:,}, p99 {spread.p99:,}, max"
            f" {spread.max:,}; mean {spread.mean:,.1f}, {spread.total:,} in all"
        )
        yield histogram(whole.lengths, limit=report.data.max_length_tokens)
    yield long_rows(whole, report.data)
    if whole.kept:
        yield (
            f"trained on: {rows(len(whole.kept))} of {sum(whole.kept):,} tokens, of which {whole.supervised:,}"
            f" ({whole.share:.1%}) are learnt"
        )
    if report.refusal:
        yield f"[bold]a run is refused[/bold]: {escape(report.refusal)}"
    if number := sum(report.held_out):
        yield f"held out: {rows(number)}, measured on and not learnt (data.held_out={report.data.held_out:g})"
    if (packs := report.packs) is not None:
        yield f"packs of up to {packs.budget:,} tokens: {len(packs):,}, which are {packs.share_filled:.1%} full"
    if len(report.sources) > 1 or report.sources[0].weight != 1:
        yield sources_table(report)
    if whole.faults:
        fate = "a run is refused" if report.data.on_bad_row is OnBadRow.refuse else "they are left out"
        bad = rows(len(whole.faults))
        yield f"[bold]{bad} cannot be used[/bold] (data.on_bad_row={report.data.on_bad_row}: {fate})"
        for line in in_lines(whole.faults):
            yield escape(line)


def rows(number: int) -> str:
    """A number of rows, for a person."""
    return f"{number:,} row{'' if number == 1 else 's'}"


def long_rows(whole: Tally, data: DataConfig) -> str:
    """How many rows are too long, and what becomes of them."""
    limit = f"longer than {data.max_length_tokens:,} tokens (data.max_length_tokens)"
    if not whole.num_long:
        return f"{limit}: none"
    left_out = whole.num_long - whole.num_truncated
    fates = [f"{whole.num_truncated:,} cut"] if whole.num_truncated else []
    if left_out:
        is_refused = data.long_rows is LongRows.refuse
        fates.append(f"a run with {left_out:,} of them is refused" if is_refused else f"{left_out:,} left out")
    found = f"{limit}: {rows(whole.num_long)} ({whole.num_long / len(whole.lengths):.1%})"
    return f"{found}; data.long_rows={data.long_rows}: {', '.join(fates)}"


def histogram(lengths: Sequence[int], *, limit: int) -> Table:
    """How many rows have how many tokens, as bars."""
    found = list(bars(lengths))
    most = max(bar.num_rows for bar in found)
    table = Table(box=None, padding=(0, 1), show_header=False)
    for _ in range(2):
        table.add_column(justify="right")
    table.add_column()
    for bar in found:
        drawn = "█" * -(-WIDEST_BAR * bar.num_rows // most)
        note = " all too long" if bar.first > limit and bar.num_rows else ""
        table.add_row(f"{bar.first:,}–{bar.last:,}", f"{bar.num_rows:,}", f"{drawn}{note}")
    return table


def sources_table(report: Report) -> Table:
    """The sources beside each other; ``of an epoch`` is how much of its tokens are a source's, by its weight.

    A stream has no epoch of all its sources.
    """
    table = Table("source")
    last = () if report.data.streaming else ("of an epoch",)
    for name in ("weight", "rows", "bad", "too long", "median", "max", "tokens", "learnt", *last):
        table.add_column(name, justify="right")
    taken = [one.weight * sum(one.kept) for one in report.trained_on]
    for one, tokens in zip(report.trained_on, taken, strict=True):
        spread = Spread.of(one.lengths) if one.lengths else None
        table.add_row(
            escape(one.name), f"{one.weight:g}", f"{one.num_rows:,}", f"{len(one.faults):,}", f"{one.num_long:,}",
            f"{spread.median:,}" if spread else "", f"{spread.max:,}" if spread else "", f"{sum(one.kept):,}",
            f"{one.share:.1%}", *(f"{tokens / max(sum(taken), 1):.1%}" for _ in last),
        )  # fmt: skip
    return table
