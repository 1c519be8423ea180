# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep: well formed, alone, and safe from names."""

import dataclasses
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from model.errors import InputError, SliceError
from tests.model.slicing.official import E4B
from tests.trainer.sweep.page_rows import HOSTILE, ORIGIN, comparisons, figure, renamed, sweep_rows
from trainer.evaluation.statistics import Difference
from trainer.sweep.page.chart import chart, ticks
from trainer.sweep.page.data import page_data, safe_json
from trainer.sweep.page.facts import Cost, Facts, pareto
from trainer.sweep.page.page import Origin, page, write_report
from trainer.sweep.page.picture import draw_frontiers
from trainer.sweep.page.table import columns
from trainer.sweep.row import Row
from trainer.sweep.run import Comparison

VOID = {"meta", "link", "input", "img", "br"}
DRAWN = {"circle", "rect", "path", "line"}


class Read(HTMLParser):
    """Elements and text of a page; complains about what is not closed in its turn."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.wrong: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in DRAWN:
            self.wrong.append(f"<{tag}/>")

    def handle_endtag(self, tag: str) -> None:
        if tag in {"option", "li"} and self.open[-1] != tag:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(" ".join(self.open[-2:]), []).append(data)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(sweep_rows(every=4))


@pytest.fixture(scope="module")
def written(rows: list[Row]) -> str:
    return page(Facts(rows=rows, config=E4B.text, comparisons=comparisons(rows)), ORIGIN)


def test_the_page_is_well_formed(written: str) -> None:
    read = Read(written)
    assert read.wrong == []
    assert read.open == []
    names = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(names) == len(set(names))
    meant = {attributes["aria-labelledby"] for _, attributes in read.elements if "aria-labelledby" in attributes}
    assert meant <= set(names)


def test_the_page_asks_for_nothing_else(written: str) -> None:
    read = Read(written)
    addresses = [
        value for _, attributes in read.elements for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}
    ]  # fmt: skip
    assert addresses == ["data:,"]
    for text in (*read.texts["head style"], *read.texts["body script"]):
        assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(|WebSocket", text)
    assert re.findall(r"https?://[^\s\"'<]+", written) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in read.elements)
    assert not any(name.startswith("on") or name == "style" for _, attributes in read.elements for name in attributes)


def test_without_a_program_figures_and_sub_models_are_all_there(rows: list[Row], written: str) -> None:
    read = Read(written)
    facts = Facts(rows=rows, config=E4B.text, comparisons=comparisons(rows))
    points = [attributes for tag, attributes in read.elements if tag == "g" and "point" in (attributes["class"] or "")]
    assert len(points) == len(rows)
    for row in rows:
        assert row.spec.name in read.texts["tr th"]
        for name, found in row.metrics.items():
            assert facts.scale_of(row.task, name).text(found.value) in read.texts["tr td"]
    for label in ("Effective parameters (billions)", "loss (nats per token), lower is better"):
        assert label in read.texts["svg text"]


def test_what_has_no_interval_says_why_and_dots_are_filled_by_p(rows: list[Row]) -> None:
    """Of chat every loss has no limits; differences of none, small and large p."""
    plain = {"loss": dataclasses.replace(figure(2.5, 0.1, "nats"), low=math.nan, high=math.nan)}
    told = [dataclasses.replace(row, metrics=plain) for row in rows if row.task == "chat"]
    compared = comparisons(told)
    changes = compared["chat"].differences["loss"]
    names = list(changes)
    same = Difference(value=0.0, low=math.nan, high=math.nan, p=1.0)
    all_by_one = Difference(value=1.0, low=math.nan, high=math.nan, p=math.nan)
    apart = [Difference(value=1.0, low=0.5, high=1.5, p=p) for p in (0.0005, 0.0501)]
    differing = dict(zip(names, [same, all_by_one, *apart], strict=False))
    comparison = dataclasses.replace(compared["chat"], differences={"loss": differing})
    facts = Facts(rows=told, config=E4B.text, comparisons={"chat": comparison})
    found = {column.title: column for column in columns(facts)}
    place = {row.spec.name: index for index, row in enumerate(facts.subs)}
    cells = [found["Δ loss"].cells[place[name]] for name in names[:4]]
    assert {cell.small for cell in found["loss"].cells} == {"all 1,200 items alike"}
    assert [cell.small for cell in cells[:2]] == ["no item differs", "all 1,200 items alike"]
    assert [cell.whisker and cell.whisker.clear for cell in cells] == [None, None, True, False]
    assert [found["p"].cells[place[name]].text for name in names[:4]] == ["1.0000", "–", "0.0005", "0.0501"]
    written = page(facts, ORIGIN)
    assert Read(written).wrong == []
    assert "no item differs" in Read(written).texts["td small"]


def test_names_are_text_wherever_they_stand(rows: list[Row], tmp_path: Path) -> None:
    hostile = [
        renamed(row, task=f"{HOSTILE}{row.task}") if row.task == "chat" else row
        for row in (renamed(row, spec=HOSTILE) if row.spec.name == "mix_0" else row for row in rows)
    ]
    hostile = [dataclasses.replace(row, versions={HOSTILE: HOSTILE}, model=HOSTILE) for row in hostile]
    origin = Origin(title=HOSTILE, parent=HOSTILE, command=[HOSTILE])
    facts = Facts(rows=hostile, config=E4B.text, comparisons=comparisons(hostile))
    read = Read(page(facts, origin))
    assert read.wrong == []
    assert [tag for tag, _ in read.elements].count("script") == 2
    assert "img" not in [tag for tag, _ in read.elements]
    assert HOSTILE in read.texts["tr th"]
    assert read.texts["head title"] == read.texts["header h1"] == [HOSTILE]
    assert json.loads(read.texts["body script"][0]) == page_data(facts)
    draw_frontiers(facts, tmp_path / "frontier.png")  # what looks like a formula is none


def test_data_cannot_end_its_element() -> None:
    told = {"</script>": ["<!--", "&lt;", "\u2028", 1.5, None]}
    assert not set("<>&\u2028") & set(safe_json(told))
    assert json.loads(safe_json(told)) == told


@pytest.mark.parametrize("case", ["one sub-model", "no intervals", "a task is not done", "no official", "all alike"])
def test_little_is_shown_as_well_as_much(case: str, rows: list[Row], tmp_path: Path) -> None:
    unsure = {"loss": dataclasses.replace(figure(2.5, 0.1, "nats"), low=math.nan, high=math.nan)}
    same = {"accuracy": figure(0.0, 0.0, "share of answers")}
    few = {
        "one sub-model": rows[:1],
        "no intervals": [dataclasses.replace(row, metrics=unsure) for row in rows],
        "a task is not done": [row for row in rows if row.task == "chat" or row.official],
        "no official": [dataclasses.replace(row, official=None, mmlu=None) for row in rows if row.official is None],
        "all alike": [dataclasses.replace(row, metrics=same) for row in rows],
    }[case]
    write_report(few, tmp_path, config=E4B.text, origin=ORIGIN)
    read = Read((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert read.wrong == []
    assert sum(tag == "figure" for tag, _ in read.elements) == len({row.task for row in few})
    assert not any("nan" in (value or "") for tag, found in read.elements if tag in DRAWN for value in found.values())


def test_a_figure_that_is_no_number_is_not_drawn(rows: list[Row]) -> None:
    broken = {"loss": figure(math.nan, 0.1, "nats per token")}
    found = [dataclasses.replace(row, metrics=broken) if row.task == "chat" else row for row in rows]
    facts = Facts(rows=found, config=E4B.text)
    assert chart(facts, "chat", "loss", Cost.parameters) is None
    assert "Nothing was found on this task." in "".join(Read(page(facts, ORIGIN)).texts["div p"])


def test_what_cannot_stand_side_by_side_is_refused(rows: list[Row], tmp_path: Path) -> None:
    other_model = dataclasses.replace(rows[1], model="another")
    wide = dataclasses.replace(rows[1].spec, ffn_widths=(99_999, *rows[1].spec.ffn_widths[1:]))
    for wrong, told, kind in (
        ([], "no rows", InputError),
        ([rows[0], other_model], r"row 2: rows disagree on the model .* in row 1", InputError),
        ([rows[0], dataclasses.replace(rows[1], data="another")], "row 2: .* on the data of task", InputError),
        ([rows[0], rows[0]], "row 2: .* stands in row 1 already", InputError),
        ([rows[0], renamed(rows[-1], spec=rows[0].spec.name)], "row 2: rows disagree on what sub-model", InputError),
        ([dataclasses.replace(rows[1], spec=wide)], "99999", SliceError),
    ):
        with pytest.raises(kind, match=told):
            write_report(wrong, tmp_path / "none", config=E4B.text, origin=ORIGIN)
    assert not (tmp_path / "none").exists()


def test_the_frontier_is_what_no_other_beats() -> None:
    points = [(float(cost), float(merit), f"{place}") for place, (cost, merit) in enumerate(
        itertools.product((1, 2, 3, 4), (5, 7, 7, 6))
    )]  # fmt: skip
    points += [(2.0, 8.0, "better"), (4.0, 8.5, "best"), (4.0, 8.5, "as good")]

    def beaten(cost: float, merit: float) -> bool:
        return any(c <= cost and m >= merit and (c, m) != (cost, merit) for c, m, _ in points)

    assert sorted(pareto(points)) == sorted(name for cost, merit, name in points if not beaten(cost, merit))
    assert pareto(points) == ["1", "2", "better", "best", "as good"]


def test_the_frontier_of_a_figure_that_should_be_low(rows: list[Row]) -> None:
    facts = Facts(rows=rows, config=E4B.text)
    losses = {row.spec.name: row.metrics["loss"].value for row in rows if row.task == "chat"}
    sizes = {row.spec.name: row.weight_bytes for row in rows}
    best = [name for name in losses if not any(
        sizes[other] <= sizes[name] and losses[other] < losses[name] for other in losses
    )]  # fmt: skip
    assert sorted(facts.frontier("chat", "loss", Cost.weight_bytes)) == sorted(best)


def test_ticks_are_round_and_within() -> None:
    for low, high, number in ((0.0, 1.0, 5), (-0.031, 0.012, 6), (1.7e9, 4.1e9, 7), (2.49, 2.51, 4)):
        found = ticks(low, high, number)
        assert 2 <= len(found) <= 2 * number
        assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def near(comparison: Comparison) -> Comparison:
    """With differences whose intervals are a hundred times as narrow."""
    changes = {
        name: dataclasses.replace(change, low=change.value - 0.0001, high=change.value + 0.0001)
        for name, change in comparison.differences["loss"].items()
    }
    return dataclasses.replace(comparison, differences={"loss": changes})


def test_shares_are_percent_with_the_digits_that_intervals_bear(rows: list[Row]) -> None:
    facts = Facts(rows=rows, config=E4B.text)
    shown = facts.scale_of("arc_easy", "accuracy")
    assert (shown.unit, shown.digits, shown.text(0.61234)) == ("% of questions", 1, "61.2")
    assert facts.scale_of("chat", "loss").text(-2.34567, signed=True) == "−2.346"
    compared = Facts(rows=rows, config=E4B.text, comparisons={"chat": near(comparisons(rows)["chat"])})
    assert compared.scale_of("chat", "loss").text(1.5) == "1.5000"  # differences that are that sure are worth telling
    assert facts.scale_of_cost(Cost.kv_bytes_per_token).label == "Keys and values (kB per token)"
