# SPDX-License-Identifier: Apache-2.0
"""What a training process takes beside its tensors: measured, by becoming one in small."""

from __future__ import annotations

import importlib
import resource
import sys
from pathlib import Path

import torch

from model.config import ModelConfig, TextConfig
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.slicing.spec import SliceSpec
from trainer.optim import OptimConfig, build_optimizer
from trainer.step import loss_sum

STATUS = Path("/proc/self/status")
TOKENS, ENTRIES, DIM = 64, 512, 64
SMALL = {
    "num_hidden_layers": 5, "num_kv_shared_layers": 0, "hidden_size": DIM, "intermediate_size": 4 * DIM,
    "head_dim": DIM // 8, "hidden_size_per_layer_input": DIM // 8, "vocab_size": ENTRIES,
    "vocab_size_per_layer_input": ENTRIES, "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0, 0.0],
}  # fmt: skip


def process_bytes() -> int:
    """Memory of this process when all that training imports is there, and a small step has been taken.

    With the first step come the pages of the libraries' code, and what products of matrices keep for themselves.
    """
    importlib.import_module("recipes.train")
    gemma = Gemma3n.build(ModelConfig(text=TextConfig.parse(SMALL)))
    gemma.initialize(0)
    ids = torch.ones(1, TOKENS, dtype=torch.int64)
    for _ in range(2):
        loss_sum(gemma, Inputs.of(ids), ids, SliceSpec.full(gemma.config.text)).backward()
        build_optimizer(gemma, OptimConfig(learning_rate=1e-4)).step()
    torch.mm(torch.ones(1024, 1024), torch.ones(1024, 1024))
    return resident_bytes()


def resident_bytes() -> int:
    """Memory of this process; where the system does not tell it, the most it ever had."""
    if STATUS.is_file():
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
