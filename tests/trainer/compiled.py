# SPDX-License-Identifier: Apache-2.0
"""Gradients with and without compiled layers, in a process of its own: what the tests' checker wraps is not compiled.

python -m tests.trainer.compiled
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.recompute import RecomputeConfig
from model.slicing.spec import SliceConfig, SliceSpec
from tests.tiny import GLOBAL, LOCAL, tiny_config, tiny_inputs, tiny_model

LENGTHS = (21, 13, 55, 34)
CONFIG = tiny_config(
    layer_types=(LOCAL, GLOBAL) * 2, intermediate_size=(48,) * 4, activation_sparsity_pattern=(0.9, 0.0, 0.0, 0.0),
    num_kv_shared_layers=2,
)  # fmt: skip
SPECS = (SliceSpec.full(CONFIG.text), SliceSpec.resolve(SliceConfig(name="narrow", ffn_widths=[24]), CONFIG.text))


def packed(tokens: int) -> Inputs:
    """Rows of two documents each."""
    inputs = tiny_inputs(CONFIG, seq=tokens)
    documents = (torch.arange(tokens) >= tokens // 3).long().expand(len(inputs.ids), -1)
    lengths = tuple((tokens // 3, tokens - tokens // 3) for _ in inputs.ids)
    return dataclasses.replace(inputs, documents=documents.contiguous(), document_lengths=lengths)


def gradients(model: Gemma3n) -> Iterator[dict[str, Tensor]]:
    """The loss of every batch by every sub-model, in the model's own dtype, and what it asks of every parameter."""
    for tokens in LENGTHS:
        inputs = packed(tokens)
        for spec in SPECS:
            model.zero_grad()
            scores = model.hidden(inputs, spec)[0] @ model.head_weight.T
            loss = F.cross_entropy(scores.flatten(0, 1), inputs.ids.roll(-1, 1).flatten())
            loss.backward()
            asked = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
            yield {"loss": loss.detach(), **asked}


def main() -> None:
    """Tell how far compiled numbers are from plain ones, and how often was compiled by the end of each."""
    torch.set_num_threads(1)
    model = tiny_model(CONFIG, spread=0.3, dtype=torch.float64).train()
    model.recompute = RecomputeConfig.everything()
    plain = list(gradients(model))
    model.model.language_model.compile_layers()
    apart: dict[str, float] = {}
    graphs: list[int] = []
    for expected, found in zip(plain, gradients(model), strict=True):
        assert expected.keys() == found.keys()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        for name, value in expected.items():
            apart[name] = max(apart.get(name, 0.0), ((found[name] - value).norm() / value.norm()).item())
    print(json.dumps({"apart": apart, "graphs": graphs}))


if __name__ == "__main__":
    main()
