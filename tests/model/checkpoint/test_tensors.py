# SPDX-License-Identifier: Apache-2.0
"""Stored tensors into memory: converted as torch converts, and read where they are to lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoint import blocks
from model.checkpoint.blocks import StoredPart
from model.checkpoint.format import read_header
from model.checkpoint.load import load
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save
from model.checkpoint.tensors import DTYPES, read_into, read_tensor
from model.errors import CheckpointError
from model.slicing.cuts import Kept, Placement
from model.slicing.module import take
from model.slicing.spec import SliceConfig, SliceSpec
from tests.tiny import TINY_TEXT, tiny_config, tiny_model

PLACEMENT = Placement("part", (Kept(0, (range(1, 4), range(6, 7))), Kept(1, (range(2), range(3, 5)))))
COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float64)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks per tensor, in tensors as small as these."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    monkeypatch.setattr(blocks, "GAP_BYTES", 0)


def stored(path: Path, dtype: torch.dtype) -> tuple[StoredPart, Tensor]:
    """A part of a tensor on disk, and that part as torch takes it."""
    tensor = (torch.randn(8, 5, generator=torch.Generator().manual_seed(3)) * 100).to(dtype)
    save_file({"whole": tensor}, path)
    return StoredPart(read_header(path)["whole"], PLACEMENT), take(PLACEMENT, tensor)


@pytest.mark.parametrize("dtype", COMPUTED_IN, ids=str)
@pytest.mark.parametrize("stored_dtype", DTYPES.values(), ids=str)
def test_a_part_is_converted_as_torch_converts(tmp_path: Path, stored_dtype: torch.dtype, dtype: torch.dtype) -> None:
    part, expected = stored(tmp_path / "file", stored_dtype)
    target = torch.full(part.shape, torch.nan, dtype=dtype)
    read_into(target, part)
    assert torch.equal(target, expected.to(dtype))


@pytest.mark.parametrize("dtype", COMPUTED_IN, ids=str)
def test_a_parameter_is_filled_in_place_and_stays_trainable(tmp_path: Path, dtype: torch.dtype) -> None:
    part, expected = stored(tmp_path / "file", torch.float32)
    parameter = nn.Parameter(torch.full(part.shape, torch.nan, dtype=dtype))
    address = parameter.data_ptr()
    read_into(parameter, part)
    assert torch.equal(parameter.detach(), expected.to(dtype))
    assert (parameter.data_ptr(), parameter.requires_grad, parameter.is_leaf) == (address, True, True)


def test_a_target_of_another_shape_or_with_gaps_is_our_own_mistake(tmp_path: Path) -> None:
    part, _ = stored(tmp_path / "file", torch.float32)
    with pytest.raises(AssertionError, match="part"):
        read_into(torch.empty(4, 5), part)
    with pytest.raises(AssertionError, match="contiguous"):
        read_into(torch.empty(4, 4).T, part)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_tensor_of_no_weights_dtype_is_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_config().write(tmp_path)
    save_file({"model.norm.weight": torch.ones(4).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'model\.language_model\.norm\.weight' is stored as (I8|F8_E4M3); weights"
    ):
        read_tensor(Checkpoint.open(tmp_path), "model.language_model.norm.weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_a_sub_model_little_more_than_its_bytes_is_asked_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    save(tiny_model(dtype=dtype), tmp_path / "checkpoint")
    asked, preadv = [], os.preadv

    def watch(descriptor: int, buffers: list[memoryview], at: int) -> int:
        asked.append(sum(map(len, buffers)))
        return preadv(descriptor, buffers, at)

    monkeypatch.setattr(os, "preadv", watch)
    spec = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
    small = load(tmp_path / "checkpoint", dtype=torch.float32, spec=spec)
    # Columns are read with their rows: of the per-layer table and of down projections, all of each is.
    table = TINY_TEXT.vocab_size_per_layer_input * 3 * TINY_TEXT.hidden_size_per_layer_input
    down = 6 * TINY_TEXT.hidden_size * (48 - 16)
    needed = sum(parameter.numel() for parameter in small.parameters())
    assert sum(asked) == (needed + table + down) * dtype.itemsize
