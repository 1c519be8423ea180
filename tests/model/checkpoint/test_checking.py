# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of several dtypes, of one that is no weight's, or of other tensors are neither loaded nor cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint.load import load
from model.checkpoint.names import modality_of
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save_tensors
from model.checkpoint.tensors import SPELLED
from model.errors import CheckpointError
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.tower_config import Modality
from tests.tiny import TINY_TEXT, tiny_config, tiny_model, tiny_multimodal_config

WHOLE = tiny_multimodal_config()
FULL = SliceSpec.full(TINY_TEXT)
NORM = "model.language_model.norm.weight"
FFN = "model.language_model.layers.0.mlp.up_proj.weight"
EMBEDDER = "model.embed_audio.embedding_projection.weight"


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in tiny_model(WHOLE, dtype=dtype).named_parameters()}


def written(directory: Path, changed: Mapping[str, Tensor]) -> Path:
    save_tensors((tensors() | dict(changed)).items(), WHOLE, directory / "checkpoint")
    return directory / "checkpoint"


def by_loading(path: Path, **how: Any) -> None:
    load(path, dtype=torch.float32, **how)


def by_slicing(path: Path, modalities: tuple[Modality, ...] | None = None) -> None:
    slice_checkpoint(path, path.parent / "small", SubModel(FULL, modalities))


BOTH_WAYS = pytest.mark.parametrize("read", [by_loading, by_slicing])


@BOTH_WAYS
def test_a_few_tensors_of_another_dtype_are_refused_by_name(tmp_path: Path, read: Callable[[Path], None]) -> None:
    path = written(tmp_path, {name: tensors()[name].bfloat16() for name in (NORM, FFN)})
    with pytest.raises(CheckpointError, match=rf"most tensors are F32, but 2 are BF16 \({FFN}, {NORM}\); a checkpoint"):
        read(path)
    assert not (tmp_path / "small").exists()


@BOTH_WAYS
def test_packed_weights_are_refused_by_name(
    tmp_path: Path, read: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SPELLED, torch.int8, "I8")  # what writes such files is not ours
    path = written(tmp_path, {FFN: tensors()[FFN].to(torch.int8)})
    with pytest.raises(CheckpointError, match=rf"1 tensors are stored as I8 \({FFN}\).*packed and quantised"):
        read(path)


@pytest.mark.parametrize("read", [by_loading, by_slicing])
def test_what_is_left_out_may_be_of_another_dtype(tmp_path: Path, read: Callable[..., None]) -> None:
    audio = {name: tensor.bfloat16() for name, tensor in tensors().items() if modality_of(name) is Modality.audio}
    path = written(tmp_path, audio)
    with pytest.raises(CheckpointError, match="most tensors are F32"):
        read(path)
    read(path, modalities=(Modality.vision,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_part_has_its_parents_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    by_slicing(written(tmp_path, tensors(dtype)))
    small = Checkpoint.open(tmp_path / "small")
    assert {small.dtype(name) for name in small.names()} == {SPELLED[dtype]}
    found, expected = load(tmp_path / "small", dtype=torch.float64), tensors(dtype)
    assert all(torch.equal(parameter, expected[name].double()) for name, parameter in found.named_parameters())


def test_a_tensor_too_many_is_named_as_its_file_does_and_may_be_removed(tmp_path: Path) -> None:
    stray = "model.layers.0.self_attn.rotary_emb.inv_freq"
    text = {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}
    path = tmp_path / "checkpoint"
    save_tensors((text | {stray: torch.zeros(4)}).items(), tiny_config(), path)
    found = rf"1 extra \('{stray}'\); remove what is extra from model\.safetensors, or save the model anew"
    with pytest.raises(CheckpointError, match=found):
        by_slicing(path)


@pytest.mark.parametrize("root", ["language_model.model.", "decoder."])
def test_names_of_another_layout_are_told_as_such(tmp_path: Path, root: str) -> None:
    text = {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}
    renamed = {name.replace("model.language_model.", root): tensor for name, tensor in text.items()}
    save_tensors(renamed.items(), tiny_config(), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="its names are of another layout: load it with transformers and save"):
        by_slicing(tmp_path / "checkpoint")


def test_a_missing_tensor_is_no_matter_of_layout(tmp_path: Path) -> None:
    text = {name: parameter.detach() for name, parameter in tiny_model().named_parameters() if name != NORM}
    save_tensors(text.items(), tiny_config(), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"1 missing .*; the two are not of one model, or the copy is incomplete"):
        by_slicing(tmp_path / "checkpoint")
