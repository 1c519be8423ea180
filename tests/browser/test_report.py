# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep in a real Chromium, driven with mouse and keys.

``SCREENSHOTS=DIRECTORY`` keeps the pictures that are taken.
"""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Tab, browser, found_chromium
from tests.model.slicing.official import E4B
from tests.trainer.sweep.page_rows import HOSTILE, ORIGIN, comparisons, renamed, sweep_rows
from trainer.sweep.page.facts import Cost, Facts
from trainer.sweep.page.page import Origin, page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found_chromium() is None, reason="no Chromium here; make browser installs it on Debian"),
]
PHONE = (360, 740)
DESK = (1280, 900)

# Text that stands out from its ground by less than 4.5, which WCAG's level AA asks of small text.
CONTRAST = """(() => {
  const numbers = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return color.startsWith("color(") ? [r, g, b, a] : [r / 255, g / 255, b / 255, a];
  };
  const bend = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * bend(r) + 0.7152 * bend(g) + 0.0722 * bend(b) + 0.05;
  const ground = (e) => {
    const color = numbers(getComputedStyle(e).backgroundColor);
    return color[3] > 0.99 ? color : ground(e.parentElement);
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.data.trim() || e.closest("script, .sr, [hidden], option") || !e.getClientRects().length) continue;
    const ink = light(numbers(e.namespaceURI.endsWith("svg") ? style.fill : style.color)), behind = light(ground(e));
    const ratio = Math.max(ink, behind) / Math.min(ink, behind);
    if (ratio < 4.5) found.push(`${node.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


@functools.cache
def swept() -> Facts:
    """What the page shows."""
    rows = sweep_rows()
    return Facts(rows=rows, config=E4B.text, comparisons=comparisons(rows))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(swept(), ORIGIN), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(running: Tab, report: Path) -> Iterator[Tab]:
    """The page, freshly opened; whatever was complained of fails the test."""
    running.size(*DESK)
    running.prefer("light")
    running.open(report)
    running.run("localStorage.clear()")
    running.complaints.clear()
    running.open(report)
    yield running
    assert running.complaints == []


def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("SCREENSHOTS", tmp_path))


def shown(tab: Tab, selector: str) -> list[int]:
    """Places of the sub-models whose elements are seen, in the order of the page."""
    return tab.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].filter((e) => e.getClientRects().length)"
        ".map((e) => Number(e.dataset.sub))"
    )


def choose(tab: Tab, selector: str, value: str) -> None:
    tab.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


ROW, MAP_ROW = "#figures tbody tr[data-sub]", "#map tbody tr[data-sub]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "size"), [("desk", DESK), ("phone", PHONE)])
def test_it_opens_without_complaint(
    tab: Tab, report: Path, tmp_path: Path, scheme: str, device: str, size: tuple[int, int]
) -> None:  # fmt: skip
    tab.prefer(scheme)
    tab.size(*size, phone=device == "phone")
    tab.requests.clear()
    tab.open(report)
    assert set(tab.requests) == {report.as_uri()}
    assert tab.run("[document.documentElement.scrollWidth, innerWidth]") == [size[0]] * 2
    assert tab.run(CONTRAST) == []
    assert len(shown(tab, ".point")) == len(swept().rows)
    tab.picture(pictures(tmp_path) / f"report_{device}_{scheme}.png")
    tab.click("input[name=task][value='1']")
    assert tab.run(CONTRAST) == []
    tab.picture(pictures(tmp_path) / f"report_{device}_{scheme}_task.png")


def test_it_says_as_much_without_its_program(running: Tab, report: Path, tmp_path: Path) -> None:
    running.size(*DESK)
    running.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        running.open(report)
        assert len(shown(running, ROW)) == len(swept().subs)
        assert running.run("document.querySelectorAll('#panels svg .point').length") == len(swept().rows)
        assert running.run("document.querySelector('.view').getClientRects().length") == 0
        running.picture(pictures(tmp_path) / "report_without_program.png")
    finally:
        running.call("Emulation.setScriptExecutionDisabled", value=False)


def test_every_column_sorts_both_ways(tab: Tab) -> None:
    tab.click("input[name=task][value='0']")
    headings = tab.run("document.querySelectorAll('#figures thead tr:last-child th').length")
    for column in range(headings):
        heading = f"#figures thead tr:last-child th:nth-child({column + 1})"
        if not tab.run(f"document.querySelector({json.dumps(heading)}).getClientRects().length"):
            continue
        rising: list[int] = []
        for expected in ("ascending", "descending") if column == 0 else ("descending", "ascending"):
            tab.click(f"{heading} button")
            assert tab.run("[...document.querySelectorAll('[aria-sort]:not([aria-sort=none])')].length") == 1
            assert tab.run(f"document.querySelector({json.dumps(heading)}).ariaSort") == expected
            found = tab.run(f"[...document.querySelectorAll('{ROW}')].map((e) => e.children[{column}].dataset.value)")
            there = [value if column == 0 else float(value) for value in found if value]
            assert there == sorted(there, reverse=expected == "descending")
            assert all(not value for value in found[len(there) :])  # what is not there comes last
            assert len(found) == len(swept().subs)
            rising = shown(tab, ROW)
            assert shown(tab, MAP_ROW) == rising
        assert len(set(rising)) == len(swept().subs)


def test_keys_sort_too(tab: Tab) -> None:
    tab.run("document.querySelector('#figures th:nth-child(3) button').focus()")
    tab.press("Enter")
    assert tab.run("document.querySelector('#figures thead tr:last-child th:nth-child(3)').ariaSort") == "descending"


def test_filters_leave_what_they_say(tab: Tab) -> None:
    subs = swept().subs
    official = [place for place, row in enumerate(subs) if row.official]
    tab.click("#only-official")
    assert shown(tab, ROW) == shown(tab, MAP_ROW) == official
    assert tab.run("document.querySelector('#count').textContent") == f"{len(official)} of {len(subs)} sub-models"
    tab.click("#search")
    tab.type("BLOCK e3")
    blocks = [place for place, row in enumerate(subs) if "block" in row.spec.name and "e3" in row.spec.name]
    assert shown(tab, ROW) == blocks != []
    tab.type(" nothing like it")
    assert shown(tab, ROW) == []
    tab.click("#clear")
    assert shown(tab, ROW) == list(range(len(subs)))
    tab.click("input[name=task][value='2']")
    tab.click("#only-front")
    front = set(swept().frontier("speech", "wer", Cost.effective_parameters))
    assert shown(tab, ROW) == [place for place, row in enumerate(subs) if row.spec.name in front]


def test_frontiers_are_those_of_the_chosen_cost_and_figure(tab: Tab) -> None:
    for number, task in enumerate(swept().tasks):
        tab.click(f"input[name=task][value='{number}']")
        for place, metric in enumerate(swept().metrics(task)):
            choose(tab, "#metric", str(place))
            for index, cost in enumerate(Cost):
                choose(tab, "#cost", str(index))
                names = {swept().subs[sub].spec.name for sub in shown(tab, ".point.front")}
                assert names == set(swept().frontier(task, metric, cost))
                titles = tab.run(
                    "[...document.querySelectorAll('.card:not([hidden]) .plot .title')].map((e) => e.textContent)"
                )
                assert titles[0] == swept().scale_of_cost(cost).label
                assert titles[1].startswith(swept().scale_of(task, metric).label)
        columns = tab.run(
            "[...document.querySelectorAll('#figures thead tr:first-child [data-task]')]"
            ".filter((e) => e.getClientRects().length).map((e) => e.textContent)"
        )
        assert columns == [task]


def test_many_tasks_are_a_list(tab: Tab, tmp_path: Path) -> None:
    rows = [renamed(row, task=f"{row.task}_{number}") for number in (1, 2) for row in sweep_rows(every=4)]
    path = tmp_path / "many.html"
    path.write_text(page(Facts(rows=rows, config=E4B.text), ORIGIN), encoding="utf-8")
    tab.open(path)
    assert len(tab.run("[...document.querySelectorAll('#panels .card')].filter((e) => !e.hidden)")) == 6
    choose(tab, "select[name=task]", "5")
    seen = "[...document.querySelectorAll('#panels .card')].filter((e) => !e.hidden).map((e) => e.dataset.task)"
    assert tab.run(seen) == ["5"]


def test_without_intervals_the_points_fill_the_plot(tab: Tab) -> None:
    drawn = "['.band', '.range', '.mark'].map((kind) => document.querySelectorAll(`#panels ${kind}`).length)"
    height = "(([...marks]) => Math.max(...marks) - Math.min(...marks))([...document.querySelectorAll("
    height += "'#panels .card:first-child .mark')].map((e) => e.getBoundingClientRect().y))"
    before = tab.run(height)
    assert tab.run(drawn) == [len(swept().tasks), len(swept().rows), len(swept().rows)]
    tab.click("#intervals")
    assert tab.run(drawn) == [0, 0, len(swept().rows)]
    assert tab.run(height) > before


def test_a_point_tells_about_itself_to_mouse_and_keys(tab: Tab) -> None:
    first = "document.querySelector('#panels .point[tabindex=\"0\"]')"
    tab.run(f"{first}.focus()")
    cheapest = tab.run(f"Number({first}.dataset.sub)")
    assert cheapest == min(range(len(swept().subs)), key=lambda place: swept().subs[place].effective_parameters)
    assert hot_and_told(tab) == told_of(cheapest)
    tab.press("ArrowRight")
    second = tab.run("Number(document.activeElement.dataset.sub)")
    assert second != cheapest
    assert hot_and_told(tab) == told_of(second)
    tab.press("End")
    assert hot_and_told(tab) == told_of(0)
    tab.press("Escape")
    assert tab.run("document.querySelector('.tip').hidden")
    tab.point_at("#panels .point[data-sub='3'] .mark")
    assert hot_and_told(tab) == told_of(3)


def hot_and_told(tab: Tab) -> tuple[list[int], str]:
    """The rows that stand out, and what the first plot tells."""
    assert not tab.run("document.querySelector('.tip').hidden")
    return shown(tab, f"{ROW}.hot"), tab.run("document.querySelector('.tip dd').textContent")


def told_of(place: int) -> tuple[list[int], str]:
    """What is told of a sub-model on the first task."""
    shown_as = swept().scale_of("chat", "loss")
    figure = swept().figures("chat", "loss")[swept().subs[place].spec.name]
    return [place], f"{shown_as.text(figure.value)} {shown_as.unit}"


def test_colours_are_chosen_and_kept(tab: Tab, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.run(ground)
    tab.click("#theme")
    dark = tab.run(ground)
    assert light != dark
    tab.open(report)
    assert tab.run(ground) == dark
    tab.click("#theme")
    assert tab.run(ground) == light
    assert tab.run("document.querySelector('#theme').textContent") == "Dark"


def test_names_do_nothing(tab: Tab, tmp_path: Path) -> None:
    rows = [renamed(row, spec=HOSTILE) if row.spec.name == "mix_1" else row for row in swept().rows]
    rows = [renamed(row, task=HOSTILE) if row.task == "chat" else row for row in rows]
    facts = Facts(rows=rows, config=E4B.text)
    path = tmp_path / "hostile.html"
    path.write_text(page(facts, Origin(title=HOSTILE, parent=HOSTILE, command=[HOSTILE])), encoding="utf-8")
    tab.open(path)
    place = next(place for place, row in enumerate(facts.subs) if row.spec.name == HOSTILE)
    tab.point_at(f"#panels .point[data-sub='{place}'] .mark")
    found: dict[str, Any] = tab.run(
        "({images: document.images.length, scripts: document.scripts.length, title: document.title,"
        " tip: document.querySelector('.tip b').textContent})"
    )
    assert (found["images"], found["scripts"]) == (0, 2)
    assert found["tip"] == HOSTILE
    assert "<script>alert(1)</script>" in found["title"]
