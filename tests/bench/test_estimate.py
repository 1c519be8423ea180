# SPDX-License-Identifier: Apache-2.0
"""What is estimated of a run is what the run takes, within a tenth in either direction."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench.estimate import CASES, measured

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
]  # fmt: skip


@pytest.mark.parametrize("name", ["lora", "images and sound, towers trained"])
def test_an_estimate_is_within_a_tenth_of_what_a_run_takes(name: str, tmp_path: Path) -> None:
    estimated, taken = measured(CASES[name], tmp_path)
    assert 0.9 < estimated / taken < 1.1
