# SPDX-License-Identifier: Apache-2.0
"""Keys and values that nothing computes with: kept, dropped, or put as zeros where some runtimes look for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from model.checkpoint.checking import WEIGHT_DTYPES
from model.checkpoint.load import load
from model.checkpoint.names import unused
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save_tensors
from model.checkpoint.tensors import DTYPES, read_tensor
from model.slicing import dead_kv as dead_kv_module
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.count import Layout, text_shapes
from model.slicing.dead_kv import ONE, DeadKV, FilledPart
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model

SPEC = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
INPUTS = tiny_inputs(tiny_config())
TOLERANCE = 2e-4  # fp32 sums in another order, on logits of size 30
FIRST_READER = 3  # of the sub-model, which has six layers


def parent(directory: Path, *, full: bool = True, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint with keys and values of readers, as published, or without, as transformers writes it."""
    tensors = {name: parameter.detach() for name, parameter in tiny_model(dtype=dtype).named_parameters()}
    if full:
        tensors |= {name: torch.full(shape, 7.0, dtype=dtype) for name, shape in unused(TINY_TEXT).items()}
    save_tensors(tensors.items(), tiny_config(), directory / "parent")
    return directory / "parent"


def sliced(source: Path, dead_kv: DeadKV) -> Checkpoint:
    slice_checkpoint(source, source.parent / dead_kv, SubModel(SPEC), dead_kv=dead_kv)
    return Checkpoint.open(source.parent / dead_kv)


def dead_values(checkpoint: Checkpoint) -> dict[str, set[float]]:
    """The values in each tensor that nothing computes with, of those that are there."""
    names = unused(checkpoint.config.text).keys() & set(checkpoint.names())
    return {name: set(read_tensor(checkpoint, name).unique().tolist()) for name in names}


@pytest.mark.parametrize("full", [True, False])
def test_kept_are_those_that_the_parent_has(tmp_path: Path, *, full: bool) -> None:
    checkpoint = sliced(parent(tmp_path, full=full), DeadKV.keep)
    expected = unused(checkpoint.config.text) if full else {}
    assert dead_values(checkpoint) == {name: {7.0} for name in expected}
    assert len(expected) == 9 * full  # of three readers


@pytest.mark.parametrize("full", [True, False])
def test_dropped_are_all(tmp_path: Path, *, full: bool) -> None:
    checkpoint = sliced(parent(tmp_path, full=full), DeadKV.drop)
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    assert shapes == text_shapes(checkpoint.config.text, Layout.used)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("full", [True, False])
def test_zeros_are_written_where_the_parent_has_others_or_none(
    tmp_path: Path, dtype: torch.dtype, *, full: bool
) -> None:
    checkpoint = sliced(parent(tmp_path, full=full, dtype=dtype), DeadKV.zeros)
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    assert shapes == text_shapes(checkpoint.config.text, Layout.published)
    assert {DTYPES[checkpoint.dtype(name)] for name in shapes} == {dtype}
    assert dead_values(checkpoint) == {
        f"model.language_model.layers.{layer}.self_attn.{leaf}.weight": {value}
        for layer in range(FIRST_READER, 6)
        for leaf, value in (("k_proj", 0.0), ("v_proj", 0.0), ("k_norm", 1.0))
    }


@pytest.mark.parametrize("dead_kv", DeadKV)
@torch.no_grad()
def test_they_change_nothing_that_is_computed(tmp_path: Path, dead_kv: DeadKV) -> None:
    small = load(sliced(parent(tmp_path), dead_kv).path, dtype=torch.float32)
    assert torch.equal(small(INPUTS).logits, slice_module(tiny_model(), SubModel(SPEC)).eval()(INPUTS).logits)


@pytest.mark.parity
@pytest.mark.parametrize("dead_kv", DeadKV)
@torch.no_grad()
def test_transformers_loads_every_kind(tmp_path: Path, dead_kv: DeadKV) -> None:
    path = sliced(parent(tmp_path), dead_kv).path
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    theirs, told = loaded
    assert not any(told[kind] for kind in ("missing_keys", "mismatched_keys"))
    found = theirs.eval()(input_ids=INPUTS.ids, use_cache=False).logits
    torch.testing.assert_close(found, load(path, dtype=torch.float32)(INPUTS).logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_one_is_spelled_right_in_every_dtype(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_kv_module, "BLOCK_BYTES", 8 * 3)
    part = FilledPart("norm", dtype, (17,), ONE[dtype])
    content = np.concatenate([block.read() for block in part.blocks()])
    assert len(content) == part.nbytes
    assert torch.equal(torch.from_numpy(content.copy()).view(DTYPES[dtype]), torch.ones(17, dtype=DTYPES[dtype]))
