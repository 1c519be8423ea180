# SPDX-License-Identifier: Apache-2.0
"""The slicing benchmark in small: it measures what it says, keeps to what does not depend on size, and cleans up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint.shapes import model_shapes
from model.slicing.count import Layout
from tests.bench.random_checkpoint import FINITE, SCALES, RandomBlock
from tests.bench.slicing import benchmark
from tests.bench.slicing_report import COPY, MOST_ASKED, MOST_PEAK_BYTES, NOTEBOOK, OURS, report


def test_the_full_parent_is_of_the_published_size() -> None:
    shapes = model_shapes(SCALES["full"].config, Layout.published)
    assert sum(map(math.prod, shapes.values())) == 7_849_978_192
    assert SCALES["full"].nbytes == 2 * 7_849_978_192


def test_random_numbers_are_finite_and_not_all_alike() -> None:
    block = RandomBlock(1 << 20, np.random.default_rng(0)).read()
    numbers = torch.from_numpy(block).view(torch.bfloat16)
    assert numbers.isfinite().all()
    assert 1.9 < numbers.abs().max() <= 2
    assert len(numbers.unique()) > 32_000
    assert FINITE & 0x4000 == 0


@pytest.mark.slow
def test_slicing_in_small_needs_little_memory_and_the_bench_leaves_nothing_behind(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    figures = benchmark(SCALES["small"], rounds=1, directory=place)
    assert list(tmp_path.iterdir()) == []
    (ours,), (copy,), (notebook,) = (figures.runs[name] for name in (OURS, COPY, NOTEBOOK))
    assert 40_000_000 < ours.peak_bytes < MOST_PEAK_BYTES < notebook.peak_bytes
    assert copy.peak_bytes < 40_000_000
    assert all(0 < run.returned <= run.on_disk for run in (ours, copy, notebook))
    (loaded,) = figures.loads
    assert 1 < loaded.asked_bytes / loaded.model_bytes < MOST_ASKED
    assert loaded.model_bytes < figures.slice_bytes < figures.parent_bytes
    page = report(figures, "a command")
    assert "{" not in page
    assert f"| {ours.peak_bytes / 1e6:.0f} MB | at most 300 MB |" in page
    assert str(tmp_path) not in page


@pytest.mark.slow
def test_what_fails_midway_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.slicing.SKIPPED", [18])  # which others read the keys and values of
    with pytest.raises(AssertionError, match="18"):
        benchmark(SCALES["small"], rounds=1, directory=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
