# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed on a processor, without what it would compile there for half a minute in every process and not use."""

from __future__ import annotations

import importlib
import os


def compile_nothing() -> None:
    """Do without the shared memory by which DeepSpeed adds up what is not added up in training; before it is used."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
