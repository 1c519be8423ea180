# SPDX-License-Identifier: Apache-2.0
"""The one rule about runtimes that is run: what is said of transformers is what transformers does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Gemma3nForCausalLM

from model.config import ModelConfig
from model.slicing.config import slice_config
from model.slicing.count import Layout, text_shapes
from model.slicing.runtimes import Runtime, preflight
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT

pytestmark = pytest.mark.parity
PARENT = ModelConfig(text=TINY_TEXT)


def random_spec(seed: int) -> SliceSpec:
    """Any legal sub-model of the tiny parent."""
    chance = random.Random(seed)
    kept = {layer for layer in range(TINY_TEXT.num_hidden_layers) if chance.random() < 0.6} or {0}
    kept |= {TINY_TEXT.kv_producer(layer) for layer in kept}
    return SliceSpec(f"random {seed}", tuple(sorted(kept)), tuple(chance.randint(1, 48) for _ in kept))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("layout", Layout)
@torch.no_grad()
def test_transformers_loads_what_it_is_said_to_run(seed: int, layout: Layout, tmp_path: Path) -> None:
    spec = random_spec(seed)
    (said,) = (one for one in preflight(spec, PARENT) if one.runtime is Runtime.transformers)
    assert (said.runs, said.checked) == (True, "run")
    sliced = slice_config(PARENT, SubModel(spec))
    sliced.write(tmp_path)
    tensors = {name: torch.rand(shape) for name, shape in text_shapes(sliced.text, layout).items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded: Any = Gemma3nForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    config = model.config
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == TINY_TEXT.rope_local_base_freq
    assert [config.layer_types[i] for i in range(len(spec.kept_layers))] == [
        TINY_TEXT.layer_types[layer] for layer in spec.kept_layers
    ]
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
