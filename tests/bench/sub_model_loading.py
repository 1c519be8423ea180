# SPDX-License-Identifier: Apache-2.0
"""What loading a sub-model out of its parent's files asks of them, and how much memory it takes at most.

    python -m tests.bench.sub_model_loading DIRECTORY --skip '[20, 21, 22, 23, 24]' --widths '[8192]'

Prints one JSON object. In a process of its own, because a process remembers only its largest size.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.load import load
from model.config import ModelConfig
from model.slicing.spec import SliceConfig, SliceSpec


def main() -> None:
    """Load, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--skip", type=json.loads, default=[], help="layers to leave out, such as '[20, 21]'")
    parser.add_argument("--widths", type=json.loads, required=True, help="one per kept layer, or one: '[8192]'")
    wanted = parser.parse_args()
    asked_bytes = 0
    preadv = os.preadv

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        nonlocal asked_bytes
        asked_bytes += sum(memoryview(buffer).nbytes for buffer in buffers)
        return preadv(descriptor, buffers, offset)

    os.preadv = counted
    widths = SliceConfig(name="sub-model", skip_layers=wanted.skip, ffn_widths=wanted.widths)
    spec = SliceSpec.resolve(widths, ModelConfig.read(wanted.directory).text)
    before_bytes, start = resident("VmRSS"), time.perf_counter()
    gemma = load(wanted.directory, dtype=torch.bfloat16, spec=spec)
    seconds = time.perf_counter() - start
    print(json.dumps({
        "seconds": seconds,
        "model_bytes": sum(parameter.nbytes for parameter in gemma.parameters()),
        "asked_bytes": asked_bytes,
        "before_bytes": before_bytes,  # the interpreter and its libraries
        "peak_bytes": resident("VmHWM"),
    }))  # fmt: skip


def resident(field: str) -> int:
    """Bytes of memory this process holds (VmRSS), or held at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"no {field} in /proc/self/status")


if __name__ == "__main__":
    main()
