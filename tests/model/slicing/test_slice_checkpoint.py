# SPDX-License-Identifier: Apache-2.0
"""Sub-models as checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint.load import load
from model.checkpoint.names import unused
from model.checkpoint.reader import Checkpoint, sha256
from model.checkpoint.writer import save, write_checkpoint
from model.config import ModelConfig
from model.errors import CheckpointError, SliceError
from model.gemma3n import Gemma3n
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.count import Layout, text_shapes
from model.slicing.spec import SliceConfig, SliceSpec
from tests.tiny import TINY_TEXT, tiny_config, tiny_inputs, tiny_model

SPEC = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
TOWER = "model.vision_tower.timm_model.conv_stem.conv.weight"


@pytest.fixture
def published(tmp_path: Path) -> Checkpoint:
    """A multimodal checkpoint as Google publishes them: a tower, and keys and values of readers."""
    generator = torch.Generator().manual_seed(5)
    tensors = {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}
    for name, shape in unused(TINY_TEXT).items():
        tensors[name] = torch.randn(shape, generator=generator)
    tensors[TOWER] = torch.randn(3, 2, generator=generator)
    text = TINY_TEXT.publish()
    config = ModelConfig(text=TINY_TEXT, published={"model_type": "gemma3n", "text_config": text, "vision_config": {}})
    write_checkpoint(tensors.items(), config, tmp_path / "published", max_shard_bytes=30_000)
    (tmp_path / "published" / "tokenizer.json").write_text("{}")
    (tmp_path / "published" / "README.md").write_text("of the parent")
    return Checkpoint.open(tmp_path / "published")


@pytest.mark.parametrize("kind", [Path, str])
def test_the_parent_may_be_given_by_its_directory(published: Checkpoint, tmp_path: Path, kind: type) -> None:
    slice_checkpoint(published, tmp_path / "opened", SPEC)
    slice_checkpoint(kind(published.path), kind(tmp_path / "named"), SPEC)
    hashes = [Checkpoint.open(tmp_path / name).file_hashes() for name in ("opened", "named")]
    assert hashes[0] == hashes[1]


def test_towers_and_unread_keys_and_values_are_carried_along(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SPEC)
    small = Checkpoint.open(tmp_path / "small")
    assert torch.equal(small.tensor(TOWER), published.tensor(TOWER))
    layers = "model.language_model.layers"
    assert torch.equal(  # layer 8 of the parent is layer 5
        small.tensor(f"{layers}.5.self_attn.k_proj.weight"), published.tensor(f"{layers}.8.self_attn.k_proj.weight")
    )
    assert {name for name in small.names() if name != TOWER} == text_shapes(small.config.text, Layout.published).keys()


def test_a_sliced_multimodal_checkpoint_stays_multimodal_and_loads(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SPEC)
    assert Checkpoint.open(tmp_path / "small").config.is_multimodal
    small, inputs = load(tmp_path / "small", dtype=torch.float32), tiny_inputs(tiny_config())
    with torch.no_grad():
        # The narrowed product may sum in another order.
        torch.testing.assert_close(small(inputs).logits, tiny_model()(inputs, SPEC).logits, rtol=0, atol=2e-4)


def test_the_tokenizer_comes_along_and_the_parents_readme_does_not(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SPEC)
    assert (tmp_path / "small" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "small" / "README.md").exists()


def test_lineage_says_which_part_of_which_parent_it_is(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SPEC)
    lineage = json.loads((tmp_path / "small" / "slice.json").read_text())
    assert lineage["spec"] == {"name": "small", "kept_layers": [0, 1, 2, 6, 7, 8], "ffn_widths": [16] * 6}
    first_file = min(published.files)
    assert lineage["parent"]["sha256"][first_file] == sha256(published.path / first_file)
    built = Gemma3n.build(Checkpoint.open(tmp_path / "small").config, device="meta")
    assert lineage["text_parameters"] == sum(parameter.numel() for parameter in built.parameters())


def test_lineage_reaches_back_to_the_first_parent(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SPEC)
    middle = Checkpoint.open(tmp_path / "small")
    slice_checkpoint(middle, tmp_path / "smaller", SliceSpec("smaller", (0, 1, 2), (8, 8, 8)))
    lineage = json.loads((tmp_path / "smaller" / "slice.json").read_text())
    assert lineage["parent"]["slice"]["spec"]["name"] == "small"


def test_an_incomplete_parent_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    tensors = [(name, tensor.detach()) for name, tensor in tiny_model().named_parameters()][:-1]
    write_checkpoint(tensors, tiny_config(), tmp_path / "broken")
    with pytest.raises(CheckpointError, match="1 missing"):
        slice_checkpoint(Checkpoint.open(tmp_path / "broken"), tmp_path / "small", SPEC)
    assert not (tmp_path / "small").exists()


def test_a_spec_of_another_parent_is_refused(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "parent")
    wide = SliceSpec("wide", SPEC.kept_layers, (64,) * 6)
    with pytest.raises(SliceError, match="asks for width 64"):
        slice_checkpoint(Checkpoint.open(tmp_path / "parent"), tmp_path / "small", wide)


def test_a_directory_in_use_is_not_written_into(published: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not empty"):
        slice_checkpoint(published, published.path, SPEC)
