# SPDX-License-Identifier: Apache-2.0
"""Directories to models: strict both ways, whole or in part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import blocks
from model.checkpoint import load as load_module
from model.checkpoint.blocks import StoredPart
from model.checkpoint.load import load
from model.checkpoint.names import is_tower, modality_of, unused
from model.checkpoint.saving import save, save_tensors
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError, SliceError
from model.inputs import Inputs
from model.slicing.spec import SliceConfig, SliceSpec
from model.tower_config import Modality
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model, tiny_multimodal_config

TABLE = "model.language_model.embed_tokens.weight"
NORM = "model.language_model.norm.weight"
FFN = "model.language_model.layers.0.mlp.up_proj.weight"
STEM_BIAS = "model.vision_tower.timm_model.conv_stem.conv.bias"
EMBEDDER = "model.embed_audio.embedding_projection.weight"
WHOLE = tiny_multimodal_config()


def tensors(config: ModelConfig | None = None) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in tiny_model(config).named_parameters()}


def written(directory: Path, changed: Mapping[str, Tensor | None], config: ModelConfig | None = None) -> Path:
    """A checkpoint of the tiny model in which some tensors are others, or None: left out."""
    content = {name: tensor for name, tensor in (tensors() | dict(changed)).items() if tensor is not None}
    save_tensors(content.items(), config or tiny_config(), directory / "checkpoint")
    return directory / "checkpoint"


def written_whole(directory: Path, changed: dict[str, Tensor | None]) -> Path:
    """The same of the tiny model with both towers."""
    return written(directory, tensors(WHOLE) | changed, WHOLE)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[StoredPart]:
    """What is read from now on, as it is read."""
    read, read_into = [], load_module.read_into

    def watch(target: Tensor, part: StoredPart) -> None:
        read.append(part)
        read_into(target, part)

    monkeypatch.setattr(load_module, "read_into", watch)
    return read


def assert_is_tiny_model(path: Path, config: ModelConfig | None = None, **how: Any) -> None:
    expected = tensors(config)
    loaded = dict(load(path, dtype=torch.float32, **how).named_parameters())
    assert loaded.keys() == expected.keys()
    for name, parameter in loaded.items():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("max_shard_bytes", [10_000, 10_000_000])
def test_a_saved_model_is_loaded_bit_for_bit(tmp_path: Path, max_shard_bytes: int) -> None:
    save(tiny_model(), tmp_path / "saved", max_shard_bytes=max_shard_bytes)
    assert_is_tiny_model(tmp_path / "saved")


def test_a_loaded_model_has_the_dtype_asked_for_and_can_be_trained(tmp_path: Path) -> None:
    model = load(written(tmp_path, {}), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())  # training begins when its loop says so
    assert torch.equal(dict(model.named_parameters())[FFN], tensors()[FFN].bfloat16())


def test_float16_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"overflow.*use bfloat16 or float32"):
        load(tmp_path, dtype=torch.float16)


def test_one_message_names_all_that_is_missing_extra_and_misshapen(tmp_path: Path) -> None:
    path = written(tmp_path, {NORM: None, TABLE: None, "model.new.weight": torch.zeros(1), FFN: torch.zeros(2, 3)})
    expected = (
        f"2 missing ('{TABLE}', '{NORM}'); 1 extra ('model.new.weight');"
        f" 1 misshapen ('{FFN}' has shape (2, 3) instead of (48, 32))"
    )
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        load(path, dtype=torch.float32)


def test_a_long_list_of_missing_tensors_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path, {name: None for name in tensors() if ".mlp." in name})
    with pytest.raises(CheckpointError, match=r"27 missing \(.*\.0\.mlp.* and 24 more\)"):
        load(path, dtype=torch.float32)


def test_keys_and_values_of_readers_are_accepted_and_not_loaded(tmp_path: Path) -> None:
    assert_is_tiny_model(written(tmp_path, {name: torch.ones(shape) for name, shape in unused(TINY_TEXT).items()}))


def test_a_stored_copy_of_the_token_table_as_head_is_accepted(tmp_path: Path) -> None:
    assert_is_tiny_model(written(tmp_path, {"lm_head.weight": tensors()[TABLE].clone()}))


def test_a_head_that_is_not_the_token_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)  # the difference stands in the last of several
    head = tensors()[TABLE].clone()
    head[-1, -1] += 1
    with pytest.raises(CheckpointError, match="head is tied"):
        load(written(tmp_path, {"lm_head.weight": head}), dtype=torch.float32)


@pytest.mark.parametrize("max_shard_bytes", [10_000, 10_000_000])
def test_a_saved_model_with_towers_is_loaded_bit_for_bit(tmp_path: Path, max_shard_bytes: int) -> None:
    save(tiny_model(WHOLE), tmp_path / "saved", max_shard_bytes=max_shard_bytes)
    assert_is_tiny_model(tmp_path / "saved", WHOLE)


@pytest.mark.parametrize("kept", [[], [Modality.text, Modality.vision], [Modality.audio], list(Modality)])
def test_of_towers_only_those_asked_for_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[Modality]
) -> None:
    path = written(tmp_path, {name: tensor for name, tensor in tensors(WHOLE).items() if is_tower(name)}, WHOLE)
    read = watched(monkeypatch)
    model = load(path, dtype=torch.float32, modalities=kept)
    assert {modality_of(part.name) for part in read} == {Modality.text, *kept}
    assert model.config == WHOLE.only(kept)
    expected = tensors() | {n: t for n, t in tensors(WHOLE).items() if is_tower(n) and modality_of(n) in kept}
    assert expected.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())


def test_without_its_towers_a_model_computes_as_the_text_model_does(tmp_path: Path) -> None:
    tower = {name: tensor for name, tensor in tensors(WHOLE).items() if is_tower(name)}
    text = load(written(tmp_path, tower, WHOLE), dtype=torch.float32, modalities=[Modality.text])
    ids = tiny_inputs(tiny_config()).ids
    ids[0, :4] = torch.tensor([78, 81, 80, 89])  # of media; a text model reads its own table there
    with torch.no_grad():
        assert torch.equal(text(Inputs.of(ids)).logits, tiny_model().eval()(Inputs.of(ids)).logits)


def test_towers_are_looked_at_as_closely_as_the_decoder(tmp_path: Path) -> None:
    extra = "model.audio_tower.conformer.3.norm.weight"
    path = written_whole(tmp_path, {STEM_BIAS: torch.zeros(2), extra: torch.zeros(32), EMBEDDER: None})
    expected = f"1 missing ('{EMBEDDER}'); 1 extra ('{extra}'); 1 misshapen ('{STEM_BIAS}' has shape (2,) instead"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        load(path, dtype=torch.float32)


def test_tensors_of_a_tower_that_the_config_does_not_have_are_extra(tmp_path: Path) -> None:
    path = written(tmp_path, {EMBEDDER: torch.zeros(1)})
    with pytest.raises(CheckpointError, match=re.escape(f"1 extra ('{EMBEDDER}')")):
        load(path, dtype=torch.float32)
    assert_is_tiny_model(path, modalities=[Modality.text])


def test_a_tower_of_the_older_layout_is_refused_unless_it_is_left_out(tmp_path: Path) -> None:
    path = written_whole(tmp_path, {STEM_BIAS: None})
    with pytest.raises(CheckpointError, match=r"older layout \(timm 1\.0\.16.*or load the model without its vision"):
        load(path, dtype=torch.float32)
    assert load(path, dtype=torch.float32, modalities=[Modality.audio]).config == WHOLE.only([Modality.audio])


def test_a_modality_without_a_tower_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vision asked for, but this model has text;"):
        load(written(tmp_path, {}), dtype=torch.float32, modalities=[Modality.vision])


def test_names_without_language_model_are_read(tmp_path: Path) -> None:
    renamed = {name.replace(".language_model", ""): tensor for name, tensor in tensors().items()}
    save_tensors(renamed.items(), tiny_config(), tmp_path / "text")
    assert_is_tiny_model(tmp_path / "text")


def test_of_a_sub_model_only_the_needed_entries_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
    path, read = written(tmp_path, {}), watched(monkeypatch)
    model = load(path, dtype=torch.float32, spec=spec)
    assert sum(part.nbytes for part in read) == sum(parameter.nbytes for parameter in model.parameters())


def test_a_spec_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SliceError, match="width 64"):
        load(written(tmp_path, {}), dtype=torch.float32, spec=SliceSpec("wide", tuple(range(9)), (64,) * 9))


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    other = tiny_config(hidden_size=24)
    with pytest.raises(CheckpointError, match="177 misshapen"):
        load(written(tmp_path, {}, other), dtype=torch.float32)
