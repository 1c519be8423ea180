# SPDX-License-Identifier: Apache-2.0
"""What a search tells: the frontier, its area, and files that slicing reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from model.slicing.spec import SliceConfig, SliceSpec
from tests.tiny import TINY_TEXT
from tests.trainer.search.spaces import BLOCK, Measured, priced, problem_of, space_of, synthetic
from trainer.search.evaluator import Evaluator
from trainer.search.methods import SearchMethod
from trainer.search.result import SearchResult, hypervolume, pareto, slice_file, written_slices
from trainer.search.search import search

POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8)


@given(POINTS)
def test_the_hypervolume_is_the_number_of_squares_that_are_beaten(points: list[tuple[int, int]]) -> None:
    beaten = {
        (x, y) for cost, loss in points for x in range(cost, 10) for y in range(loss, 9)
    }  # the square from (x, y) to (x + 1, y + 1)
    assert hypervolume(points, (10, 9)) == len(beaten)


def found() -> SearchResult:
    space = space_of(BLOCK)
    losses = synthetic(space)
    problem = problem_of(priced(space), losses, limit=40)
    return search(problem, SearchMethod.surrogate, Evaluator(Measured(space, losses)), top_k=2)


def test_the_frontier_is_what_nothing_beats() -> None:
    result = found()
    every = [*result.frontier, *(pick.found for pick in result.picks)]
    for one in result.frontier:
        assert not any(
            other.price <= one.price and other.judged_loss <= one.judged_loss and other != one for other in every
        )
    assert pareto(every) == result.frontier
    assert [one.price for one in result.frontier] == sorted(one.price for one in result.frontier)
    assert 0 < result.hypervolume < result.reference[0] * result.reference[1]


def test_picks_get_better_as_budgets_grow() -> None:
    losses = [pick.found.judged_loss for pick in found().picks]
    assert losses == sorted(losses, reverse=True)


def test_a_record_is_json_and_holds_every_pick() -> None:
    result = found()
    record = json.loads(json.dumps(result.record()))
    assert [pick["budget"] for pick in record["picks"]] == [pick.budget for pick in result.picks]
    assert record["hypervolume"] == pytest.approx(result.hypervolume)
    assert record["evaluations"] == 40


def test_files_of_picks_are_read_back_as_the_same_sub_models(tmp_path: Path) -> None:
    result = found()
    files = list(written_slices([pick.found.spec for pick in result.picks], TINY_TEXT))
    assert len({written.name for written in files}) == len(files)
    read: list[SliceSpec] = []
    for written in files:
        path = tmp_path / f"{written.name}.yaml"
        path.write_text(slice_file(written, ["found by a search"]), encoding="utf-8")
        merged = OmegaConf.merge(OmegaConf.structured(SliceConfig), OmegaConf.load(path))
        config = OmegaConf.to_object(merged)
        assert isinstance(config, SliceConfig)
        read.append(SliceSpec.resolve(config, TINY_TEXT))
    assert {spec.shape for spec in read} == {pick.found.spec.shape for pick in result.picks}
