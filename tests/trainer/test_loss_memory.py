# SPDX-License-Identifier: Apache-2.0
"""How much memory the loss takes at most, each time in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MB = 1_000_000
TOKENS, VOCAB, DIM = 1024, 262_400, 64
ALL_SCORES_BYTES = TOKENS * VOCAB * 4
PROGRAM = """
import sys
from pathlib import Path
import torch
from trainer.loss import linear_cross_entropy_sum

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

tokens, vocab, dim, chunk_bytes, trained = map(int, sys.argv[1:])
hidden, weight = torch.randn(1, tokens, dim), torch.randn(vocab, dim)
labels = torch.randint(0, vocab, (1, tokens))

def step(tokens):
    states = hidden[:, :tokens].clone().requires_grad_()
    head = weight.requires_grad_(bool(trained))
    linear_cross_entropy_sum(states, head, labels[:, :tokens], softcap=30.0, chunk_bytes=chunk_bytes).backward()
    head.grad = None

step(1)  # what libraries take for themselves
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
step(tokens)
print(status("VmHWM") - before)
"""


def extra_bytes(*, chunk_bytes: int, trained: bool) -> int:
    """What one loss with its gradient takes beside its inputs, at most."""
    arguments = map(str, (TOKENS, VOCAB, DIM, chunk_bytes, int(trained)))
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, cwd=Path(__file__).parents[2]
    )
    return int(told.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the process's peak")
@pytest.mark.parametrize("chunk_bytes", [16 * MB, 256 * MB])
def test_the_loss_takes_no_more_than_its_chunks(chunk_bytes: int) -> None:
    taken = extra_bytes(chunk_bytes=chunk_bytes, trained=False)
    assert taken <= chunk_bytes + 20 * MB < ALL_SCORES_BYTES


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the process's peak")
def test_a_trained_head_takes_its_gradient_once_besides() -> None:
    taken = extra_bytes(chunk_bytes=256 * MB, trained=True)
    assert taken <= 256 * MB + VOCAB * DIM * 4 + 30 * MB < ALL_SCORES_BYTES
