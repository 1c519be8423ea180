# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints lazily, and what is said about broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint.names import is_tower, like, ours, unused
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save
from model.checkpoint.tensors import read_tensor
from model.config import TextConfig
from model.errors import CheckpointError, ConfigError
from model.slicing.cuts import Kept, Placement
from model.slicing.module import take
from tests.tiny import tiny_model

TABLE = "model.language_model.embed_tokens_per_layer.weight"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(tiny_model(), tmp_path / "sharded", max_shard_bytes=50_000)
    return tmp_path / "sharded"


def first_shard(directory: Path) -> Path:
    return min(directory.glob("*.safetensors"))


def test_every_tensor_of_every_shard_can_be_read(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    for name, parameter in tiny_model().named_parameters():
        assert checkpoint.shape(name) == tuple(parameter.shape)
        assert torch.equal(read_tensor(checkpoint, name), parameter)


def test_a_part_is_what_would_be_taken_of_the_whole(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    placement = Placement(TABLE, (Kept(1, (range(6), range(12, 24))),))
    part = read_tensor(checkpoint, TABLE, placement)
    assert torch.equal(part, take(placement, read_tensor(checkpoint, TABLE)))
    assert part.is_contiguous()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such directory"):
        Checkpoint.open(tmp_path / "nowhere")


def test_a_directory_without_weights_is_refused(sharded: Path) -> None:
    for path in sharded.glob("model*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        Checkpoint.open(sharded)


def test_a_directory_without_config_is_refused(sharded: Path) -> None:
    (sharded / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        Checkpoint.open(sharded)


def test_an_adapter_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an adapter"):
        Checkpoint.open(tmp_path)


def test_a_shard_that_the_index_names_but_is_not_there_is_named(sharded: Path) -> None:
    missing = first_shard(sharded)
    missing.unlink()
    with pytest.raises(CheckpointError, match=f"names {missing.name}, which is not there"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("kept_bytes", [-10, 100, 0])
def test_a_shard_that_was_cut_short_is_named(sharded: Path, kept_bytes: int) -> None:
    shard = first_shard(sharded)
    shard.write_bytes(shard.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match=f"{shard.name}: cut short"):
        Checkpoint.open(sharded)


def test_a_tensor_in_the_index_that_its_shard_lacks_is_named(sharded: Path) -> None:
    shard = first_shard(sharded)
    save_file({"other": torch.zeros(1)}, shard)
    with pytest.raises(CheckpointError, match=rf"{shard.name}: lacks model\.altup.* and also has other"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("content", ['{"weights": 1}', "[]", "[" * 100_000, '{"weight_map": []}'])
def test_an_index_that_is_no_index_is_refused(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="not an index"):
        Checkpoint.open(sharded)


def test_two_sets_of_weights_in_one_directory_are_refused(sharded: Path) -> None:
    save_file({"other": torch.zeros(1)}, sharded / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds both"):
        Checkpoint.open(sharded)


def test_one_tensor_under_both_published_names_is_refused(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "one")
    weights = {"model.norm.weight": torch.zeros(1), "model.language_model.norm.weight": torch.zeros(1)}
    save_file(weights, tmp_path / "one" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'model\.language_model\.norm\.weight' is there twice"):
        Checkpoint.open(tmp_path / "one")


@pytest.mark.parametrize(
    ("published", "name"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("model.vision_tower.x", "model.vision_tower.x"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_published_names_of_both_kinds_are_one_to_us_and_can_be_spelled_back(published: str, name: str) -> None:
    assert ours(published) == name
    assert like(published, name) == published


def test_only_towers_are_towers() -> None:
    assert is_tower("model.audio_tower.conformer.0.norm.weight")
    assert not is_tower("model.language_model.norm.weight")


def test_readers_of_e4b_have_unread_keys_and_values_of_the_known_size() -> None:
    shapes = unused(TextConfig.parse({}))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 31_461_120
    assert json.dumps(sorted(shapes)[0]) == '"model.language_model.layers.20.self_attn.k_norm.weight"'
