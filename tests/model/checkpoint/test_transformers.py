# SPDX-License-Identifier: Apache-2.0
"""Checkpoints cross to transformers and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

from model.checkpoint.load import load
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model

pytestmark = pytest.mark.parity
INPUTS = tiny_inputs(tiny_config())
TOLERANCE = 2e-4  # fp32 sums in another order, on logits of size 30


def their_scores(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=INPUTS.ids, use_cache=False).logits.float()


@torch.no_grad()
def our_scores(path: Path) -> torch.Tensor:
    return load(path, dtype=torch.float32)(INPUTS).logits


@pytest.mark.parametrize("max_shard_bytes", [30_000, 10_000_000])
def test_transformers_loads_what_we_save(tmp_path: Path, max_shard_bytes: int) -> None:
    save(tiny_model(), tmp_path / "ours", max_shard_bytes=max_shard_bytes)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    theirs, told = loaded
    assert isinstance(theirs, Gemma3nForCausalLM)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = tiny_model()(INPUTS).logits
    torch.testing.assert_close(their_scores(theirs), expected, rtol=0, atol=TOLERANCE)


def test_transformers_loads_a_slice_with_skipped_layers_and_mixed_widths(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "ours")
    written = SliceConfig(name="mixed", skip_layers=[3, 4, 5], ffn_widths=[48, 16, 24, 16, 32, 48])
    sub = SubModel(SliceSpec.resolve(written, TINY_TEXT))
    slice_checkpoint(Checkpoint.open(tmp_path / "ours"), tmp_path / "slice", sub)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "slice")
    torch.testing.assert_close(their_scores(theirs), our_scores(tmp_path / "slice"), rtol=0, atol=TOLERANCE)


def test_we_load_what_transformers_saves_after_loading_ours(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert torch.equal(our_scores(tmp_path / "theirs"), our_scores(tmp_path / "ours"))


def test_we_load_what_transformers_saves_of_a_new_model(tmp_path: Path) -> None:
    published = tiny_config().text.publish()
    del published["model_type"]
    torch.manual_seed(0)
    theirs = Gemma3nForCausalLM(Gemma3nTextConfig(**published))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    torch.testing.assert_close(their_scores(theirs), our_scores(tmp_path / "theirs"), rtol=0, atol=TOLERANCE)
