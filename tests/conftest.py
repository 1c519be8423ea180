# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: one thread, no network, the same examples every time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import torch
from hypothesis import HealthCheck, settings

import tests.torchvision_operators
import tests.typecheck  # noqa: F401 - jaxtyping's hook looks it up as an attribute of `tests`

torch.set_num_threads(1)

# Derandomised: a red test stays red until someone mends it. No deadline: the machine may be busy.
settings.register_profile(
    "matslice", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=25
)
settings.load_profile("matslice")
