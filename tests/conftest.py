# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: one thread, no network, the same examples every time."""

import gc
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import absl.logging
import pytest
import torch
from hypothesis import HealthCheck, settings

import tests.torchvision_operators
import tests.typecheck  # before what is checked; jaxtyping's hook looks it up as an attribute of `tests`
from tests.pictures import draw

torch.set_num_threads(1)
# rouge-score brings absl, which closes what it logs to when logging is configured anew, unless it is the real stderr.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# Derandomised: a red test stays red until someone mends it. No deadline: the machine may be busy.
settings.register_profile(
    "matslice", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=25
)
settings.load_profile("matslice")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the first calls in this test be checked again, and pictures be drawn if they are asked for."""
    tests.typecheck.began[0] += 1
    draw(wanted="pictured" in getattr(item, "fixturenames", ()))


@pytest.fixture
def pictured() -> None:
    """For a test that looks at the picture of a run's losses."""


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported: millions of objects that are there until the end."""
    gc.collect()
    gc.freeze()
