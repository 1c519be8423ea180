# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as they stand on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model.adapter.lora import AdapterConfig, attach
from model.checkpoint.names import in_file
from model.checkpoint.saving import save, save_tensors
from model.checkpoint.writer import GENERATION_FILE
from model.config import ModelConfig
from model.errors import CheckpointError
from tests.tiny import TINY_TEXT, tiny_config, tiny_model


def test_a_model_of_several_shards_has_an_index_with_every_tensor_and_the_total_size(tmp_path: Path) -> None:
    model = tiny_model()
    save(model, tmp_path / "out", max_shard_bytes=50_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = {in_file(name, model.config) for name, _ in model.named_parameters()}
    assert index["weight_map"].keys() == names == {name.replace("language_model.", "") for name in names}
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.parameters())
    files = sorted({*index["weight_map"].values()})
    assert files == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == files


def test_a_small_model_is_one_file_that_says_its_format(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "out")
    files = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_ids_to_stop_at_are_written_unless_a_file_with_them_is_carried_along(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(eos_token_id=(1, 7)))
    save(model, tmp_path / "new")
    content = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert content == {"bos_token_id": 2, "eos_token_id": [1, 7], "pad_token_id": 0}

    def carry(directory: Path) -> None:
        (directory / GENERATION_FILE).write_text("{}")

    save(model, tmp_path / "carried", extras=carry)
    assert (tmp_path / "carried" / "generation_config.json").read_text() == "{}"


def test_a_view_is_written_without_the_rest_of_its_memory(tmp_path: Path) -> None:
    big = torch.arange(1000.0).view(10, 100)
    save_tensors([("row", big[3]), ("columns", big[:, :2])], tiny_config(), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("row"), big[3])
        assert torch.equal(file.get_tensor("columns"), big[:, :2])


def test_extra_files_are_written_before_the_directory_appears(tmp_path: Path) -> None:
    def add(directory: Path) -> None:
        assert not (tmp_path / "out").exists()
        (directory / "tokenizer.json").write_text("{}")

    save(tiny_model(), tmp_path / "out", extras=add)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'a' comes twice"):
        save_tensors([("a", torch.zeros(1)), ("a", torch.ones(1))], tiny_config(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_decoder_out_of_a_multimodal_checkpoint_is_saved_as_a_text_only_model(tmp_path: Path) -> None:
    model = tiny_model()
    model.config = ModelConfig(
        text=TINY_TEXT, published={"model_type": "gemma3n", "text_config": {}, "vision_config": {}}
    )
    save(model, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == "gemma3n_text"
    assert "vision_config" not in written


def test_a_model_with_an_adapter_is_not_saved_as_if_it_had_none(tmp_path: Path) -> None:
    model = tiny_model()
    attach(model, AdapterConfig(rank=2, alpha=2))
    with pytest.raises(CheckpointError, match="merge it first"):
        save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
