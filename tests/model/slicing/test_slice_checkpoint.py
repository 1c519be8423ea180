# SPDX-License-Identifier: Apache-2.0
"""Sub-models as checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.load import load
from model.checkpoint.names import TIED_HEAD, TOKEN_TABLE, unused
from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save, save_tensors
from model.checkpoint.shapes import model_shapes
from model.checkpoint.tensors import read_tensor
from model.errors import CheckpointError, ConfigError, SliceError
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.count import Layout, text_shapes
from model.slicing.module import slice_module
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary
from model.tower_config import Modality
from tests.tiny import (
    TINY_TEXT,
    tiny_config,
    tiny_inputs,
    tiny_model,
    tiny_multimodal_config,
    tiny_multimodal_inputs,
)

SPEC = SliceSpec.resolve(SliceConfig(name="small", skip_layers=[3, 4, 5], ffn_widths=[16]), TINY_TEXT)
TOWER = "model.vision_tower.timm_model.conv_stem.conv.weight"
WHOLE = tiny_multimodal_config()
MEDIA = tiny_multimodal_inputs(WHOLE, "text image text audio", "audio text")


@pytest.fixture
def published(tmp_path: Path) -> Checkpoint:
    """A multimodal checkpoint as Google publishes them: both towers, and keys and values of readers."""
    generator = torch.Generator().manual_seed(5)
    tensors = {name: parameter.detach() for name, parameter in tiny_model(WHOLE).named_parameters()}
    for name, shape in unused(TINY_TEXT).items():
        tensors[name] = torch.randn(shape, generator=generator)
    save_tensors(tensors.items(), WHOLE, tmp_path / "published", max_shard_bytes=90_000)
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"):
        (tmp_path / "published" / name).write_text("{}")
    (tmp_path / "published" / "README.md").write_text("written by hand")
    return Checkpoint.open(tmp_path / "published")


@pytest.mark.parametrize("kind", [Path, str])
def test_the_parent_may_be_given_by_its_directory(published: Checkpoint, tmp_path: Path, kind: type) -> None:
    slice_checkpoint(published, tmp_path / "opened", SubModel(SPEC))
    slice_checkpoint(kind(published.path), kind(tmp_path / "named"), SubModel(SPEC))
    opened, named = (json.loads((tmp_path / name / "slice.json").read_text()) for name in ("opened", "named"))
    assert opened == named


def test_towers_and_unread_keys_and_values_are_carried_along(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SubModel(SPEC))
    small = Checkpoint.open(tmp_path / "small")
    assert torch.equal(read_tensor(small, TOWER), read_tensor(published, TOWER))
    layers = "model.language_model.layers"
    assert torch.equal(  # layer 8 of the parent is layer 5
        read_tensor(small, f"{layers}.5.self_attn.k_proj.weight"),
        read_tensor(published, f"{layers}.8.self_attn.k_proj.weight"),
    )
    assert {name: small.shape(name) for name in small.names()} == model_shapes(small.config, Layout.published)


def test_a_sliced_multimodal_checkpoint_stays_multimodal_and_loads(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SubModel(SPEC))
    assert Checkpoint.open(tmp_path / "small").config.is_multimodal
    small = load(tmp_path / "small", dtype=torch.float32)
    with torch.no_grad():
        # The narrowed product may sum in another order.
        torch.testing.assert_close(small(MEDIA).logits, tiny_model(WHOLE)(MEDIA, SPEC).logits, rtol=0, atol=2e-4)


def test_a_slice_without_towers_is_the_checkpoint_of_a_text_model(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SubModel(SPEC, modalities=(Modality.text,)))
    small = Checkpoint.open(tmp_path / "small")
    assert small.config.published["model_type"] == "gemma3n_text"
    assert {name: small.shape(name) for name in small.names()} == text_shapes(small.config.text, Layout.published)
    whole, inputs = load(published.path, dtype=torch.float32, modalities=[]), tiny_inputs(tiny_config())
    with torch.no_grad():
        # The narrowed product may sum in another order.
        ours, theirs = load(tmp_path / "small", dtype=torch.float32)(inputs).logits, whole(inputs, SPEC).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    lineage = json.loads((tmp_path / "small" / "slice.json").read_text())
    assert (lineage["modalities"], lineage["parameters"]) == (["text"], lineage["text_parameters"])


def test_a_slice_without_towers_has_no_files_of_a_processor(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SubModel(SPEC, modalities=()))
    slice_checkpoint(published, tmp_path / "part", SubModel(SPEC, modalities=(Modality.audio,)))
    kept = {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"}
    assert {path.name for path in (tmp_path / "part").iterdir()} >= kept
    assert {path.name for path in (tmp_path / "small").iterdir()} & kept == {"tokenizer.json", "chat_template.jinja"}


@pytest.mark.parametrize("kept", [Modality.vision, Modality.audio])
def test_a_slice_with_one_tower_loads_and_hears_or_sees_as_its_parent(
    published: Checkpoint, tmp_path: Path, kept: Modality
) -> None:
    slice_checkpoint(published, tmp_path / "small", SubModel(SPEC, modalities=(kept,)))
    small = load(tmp_path / "small", dtype=torch.float32)
    assert small.config.modalities == (Modality.text, kept)
    row = {Modality.vision: "text image image", Modality.audio: "audio text"}[kept]
    inputs = tiny_multimodal_inputs(WHOLE, row)
    with torch.no_grad():
        expected = load(published.path, dtype=torch.float32)(inputs, SPEC).logits
        torch.testing.assert_close(small(inputs).logits, expected, rtol=0, atol=2e-4)


def test_a_tower_that_is_left_out_need_not_be_in_order(tmp_path: Path) -> None:
    tensors = {name: tensor.detach() for name, tensor in tiny_model(WHOLE).named_parameters()}
    del tensors["model.vision_tower.timm_model.conv_stem.conv.bias"]
    save_tensors(tensors.items(), WHOLE, tmp_path / "old")
    with pytest.raises(CheckpointError, match="older layout"):
        slice_checkpoint(tmp_path / "old", tmp_path / "small", SubModel(SPEC))
    slice_checkpoint(tmp_path / "old", tmp_path / "small", SubModel(SPEC, modalities=(Modality.audio,)))
    assert load(tmp_path / "small", dtype=torch.float32).config.vision is None


def test_a_tower_that_the_parent_does_not_have_is_refused(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "parent")
    with pytest.raises(ConfigError, match="vision asked for, but this model has text;"):
        slice_checkpoint(tmp_path / "parent", tmp_path / "small", SubModel(SPEC, modalities=(Modality.vision,)))
    assert not (tmp_path / "small").exists()


def test_the_tokenizer_comes_along_and_the_parents_readme_does_not(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SubModel(SPEC))
    assert (tmp_path / "small" / "tokenizer.json").read_text() == "{}"
    assert "written by hand" not in (tmp_path / "small" / "README.md").read_text()


def test_lineage_says_which_part_of_which_parent_it_is(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SubModel(SPEC))
    lineage = json.loads((tmp_path / "small" / "slice.json").read_text())
    assert lineage["spec"] == {"name": "small", "kept_layers": [0, 1, 2, 6, 7, 8], "ffn_widths": [16] * 6}
    assert lineage["parent"] == {"fingerprint": published.fingerprint(), "layers": 9}
    built = Gemma3n.build(Checkpoint.open(tmp_path / "small").config, device="meta")
    assert lineage["modalities"] == ["text", "vision", "audio"]
    assert lineage["parameters"] == sum(parameter.numel() for parameter in built.parameters())
    text = built.model.language_model.parameters()
    assert lineage["text_parameters"] == sum(parameter.numel() for parameter in text)


def test_lineage_reaches_back_to_the_first_parent(published: Checkpoint, tmp_path: Path) -> None:
    slice_checkpoint(published, tmp_path / "small", SubModel(SPEC))
    middle = Checkpoint.open(tmp_path / "small")
    slice_checkpoint(middle, tmp_path / "smaller", SubModel(SliceSpec("smaller", (0, 1, 2), (8, 8, 8))))
    lineage = json.loads((tmp_path / "smaller" / "slice.json").read_text())
    assert lineage["parent"]["slice"]["spec"]["name"] == "small"


def test_an_incomplete_parent_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    tensors = [(name, tensor.detach()) for name, tensor in tiny_model().named_parameters()][:-1]
    save_tensors(tensors, tiny_config(), tmp_path / "broken")
    with pytest.raises(CheckpointError, match="1 missing"):
        slice_checkpoint(Checkpoint.open(tmp_path / "broken"), tmp_path / "small", SubModel(SPEC))
    assert not (tmp_path / "small").exists()


def test_a_spec_of_another_parent_is_refused(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path / "parent")
    wide = SliceSpec("wide", SPEC.kept_layers, (64,) * 6)
    with pytest.raises(SliceError, match="asks for width 64"):
        slice_checkpoint(Checkpoint.open(tmp_path / "parent"), tmp_path / "small", SubModel(wide))


def test_a_directory_in_use_is_not_written_into(published: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        slice_checkpoint(published, tmp_path / "used", SubModel(SPEC))
    with pytest.raises(CheckpointError, match=r"used: holds other things.*no config\.json"):
        slice_checkpoint(published, tmp_path / "used", SubModel(SPEC), overwrite=True)
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]


def test_a_link_that_leads_in_a_circle_is_no_place_for_a_slice(published: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="is a link that leads back to itself"):
        slice_checkpoint(published, tmp_path / "loop", SubModel(SPEC))


def test_a_parent_with_a_head_of_its_own_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    tensors = {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}
    head = tensors[TOKEN_TABLE].clone()
    head[-1, -1] += 1
    save_tensors((tensors | {TIED_HEAD: head}).items(), tiny_config(), tmp_path / "parent")
    with pytest.raises(CheckpointError, match=r"parent: 'lm_head\.weight' differs from"):
        slice_checkpoint(tmp_path / "parent", tmp_path / "small", SubModel(SPEC))
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


@pytest.mark.parametrize("where", [".", "small", ".."])
def test_the_parent_is_never_written_over_nor_into(published: Checkpoint, where: str) -> None:
    before = sorted(published.path.iterdir())
    with pytest.raises(CheckpointError, match=r"is the parent's own directory .* lies in it, or holds it"):
        slice_checkpoint(published, published.path / where, SubModel(SPEC), overwrite=True)
    assert sorted(published.path.iterdir()) == before


@pytest.mark.parametrize(
    "cut",
    [
        {"audio_layers": (0, 2)},
        {"audio_layers": (1,), "modalities": (Modality.audio,)},
        {"vocabulary": Vocabulary.of(range(10, 40), WHOLE)},
        {"vocabulary": Vocabulary.of(range(0, 80, 3), WHOLE), "audio_layers": (2,)},
        {"vocabulary": Vocabulary.of((9, 70), WHOLE.only([])), "modalities": ()},
    ],
    ids=str,
)
@pytest.mark.parametrize("head", [False, True])
@torch.no_grad()
def test_a_checkpoint_loses_layers_of_the_audio_tower_and_tokens_as_a_live_model_does(
    tmp_path: Path, cut: dict[str, Any], *, head: bool
) -> None:
    tensors = {name: parameter.detach() for name, parameter in tiny_model(WHOLE).named_parameters()}
    if head:
        tensors[TIED_HEAD] = tensors[TOKEN_TABLE].clone()
    save_tensors(tensors.items(), WHOLE, tmp_path / "parent", max_shard_bytes=90_000)
    sub = SubModel(SPEC, **cut)
    slice_checkpoint(tmp_path / "parent", tmp_path / "small", sub, max_shard_bytes=60_000)
    small, expected = load(tmp_path / "small", dtype=torch.float32), slice_module(tiny_model(WHOLE), sub).eval()
    assert (small.config.text, small.config.vision, small.config.audio) == (
        expected.config.text, expected.config.vision, expected.config.audio
    )  # fmt: skip
    found = dict(small.named_parameters())
    assert found.keys() == dict(expected.named_parameters()).keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in expected.named_parameters())
    ids = torch.arange(small.config.text.vocab_size_per_layer_input)[None]
    assert torch.equal(small(Inputs.of(ids)).logits, expected(Inputs.of(ids)).logits)
    stored = Checkpoint.open(tmp_path / "small")
    assert (TIED_HEAD in stored.names()) is head
    if head:
        assert torch.equal(read_tensor(stored, TIED_HEAD), read_tensor(stored, TOKEN_TABLE))
