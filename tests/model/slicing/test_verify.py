# SPDX-License-Identifier: Apache-2.0
"""Verifying finds what is not as it was when a slice was made, and accepts every slice as it was made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from model.adapter.lora import AdapterConfig, attach, save_adapter
from model.checkpoint.names import TOKEN_TABLE, unused
from model.checkpoint.reader import INDEX_FILE, Checkpoint
from model.checkpoint.saving import save_tensors
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.slicing.adapter import slice_adapter
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.dead_kv import DeadKV
from model.slicing.lineage import CARD_FILE, LINEAGE_FILE, read_lineage
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.verify import verify
from model.slicing.vocabulary import Vocabulary
from model.tower_config import Modality
from recipes.merge import merge_into
from tests.daily import daily
from tests.tiny import TINY_TEXT, tiny_config, tiny_model, tiny_multimodal_config

WHOLE = tiny_multimodal_config()
SPEC = SliceSpec("small", (0, 1, 2, 6, 7, 8), (16,) * 6)
SMALL = SubModel(SPEC)
TEXT = (Modality.text,)
UP = "model.language_model.layers.7.mlp.up_proj.weight"  # 6 KB, of which the fingerprint has 4 KB


def write(
    directory: Path,
    config: ModelConfig = WHOLE,
    *,
    dead: bool = True,
    changed: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """A checkpoint in several files; with keys and values of readers, as Google has them."""
    tensors = {name: parameter.detach() for name, parameter in tiny_model(config).named_parameters()}
    if dead:
        generator = torch.Generator().manual_seed(5)
        tensors |= {name: torch.randn(shape, generator=generator) for name, shape in unused(TINY_TEXT).items()}
    save_tensors((tensors | dict(changed or {})).items(), config, directory, max_shard_bytes=150_000)
    return directory


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("verify") / "parent")


@pytest.fixture(scope="module")
def whole(parent: Path) -> Path:
    """A slice in several files."""
    directory = parent.parent / "small"
    slice_checkpoint(parent, directory, SMALL, max_shard_bytes=60_000)
    return directory


@pytest.fixture
def small(whole: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "small"))


def told_of(path: Path, parent: Path | None = None) -> str:
    """What verifying says of something that is right."""
    told: list[str] = []
    verify(path, parent=parent, told=told.append)
    return "\n".join(told)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def flip(path: Path, at: int) -> None:
    """Change a bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


GOOD: dict[str, tuple[SubModel, DeadKV]] = {
    "towers": (SMALL, DeadKV.keep),
    "text alone": (SubModel(SPEC, modalities=TEXT), DeadKV.keep),
    "one tower": (SubModel(SPEC, modalities=(Modality.audio,)), DeadKV.keep),
    "audio layers": (SubModel(SPEC, audio_layers=(0, 2)), DeadKV.keep),
    "tokens": (SubModel(SPEC, vocabulary=Vocabulary.of(range(20, 60), WHOLE)), DeadKV.keep),
    "all at once": (
        SubModel(SPEC, audio_layers=(1,), vocabulary=Vocabulary.of(range(0, 80, 3), WHOLE)), DeadKV.zeros,
    ),
    "everything": (SubModel(SliceSpec.full(TINY_TEXT)), DeadKV.keep),
    "no unread keys and values": (SMALL, DeadKV.drop),
    "zeros for unread keys and values": (SubModel(SPEC, modalities=TEXT), DeadKV.zeros),
}  # fmt: skip


@pytest.mark.parametrize("what", daily(GOOD, "text alone", "all at once", "no unread keys and values"))
def test_a_slice_is_as_it_says_and_its_parents_byte_for_byte(what: str, parent: Path, tmp_path: Path) -> None:
    sub, dead_kv = GOOD[what]
    slice_checkpoint(parent, tmp_path / "small", sub, dead_kv=dead_kv, max_shard_bytes=60_000)
    tensors = len(Checkpoint.open(tmp_path / "small").names())
    files = len([*(tmp_path / "small").iterdir()]) - 1
    told = told_of(tmp_path / "small", parent)
    assert f"{tensors} tensors have the names and shapes that config.json asks for" in told
    assert f"{files} files have the SHA-256 that slice.json says" in told
    small = ModelConfig.read(tmp_path / "small").text
    filled = len(unused(small)) if dead_kv is DeadKV.zeros else 0
    assert f"{tensors - filled} tensors are the parent's, byte for byte" in told
    assert (f"{filled} keys and values that nothing reads are zeros" in told) == (filled > 0)
    fingerprint = Checkpoint.open(parent).fingerprint()[:16]
    assert told.endswith(
        f"lineage: '{sub.name}', {len(sub.spec.kept_layers)} of 9 layers, of the parent {fingerprint}…"
    )


def test_zeros_that_the_parent_did_not_have_are_no_fault(tmp_path: Path) -> None:
    parent = write(tmp_path / "parent", tiny_config(), dead=False)
    slice_checkpoint(parent, tmp_path / "small", SMALL, dead_kv=DeadKV.zeros)
    assert "are the parent's, byte for byte" in told_of(tmp_path / "small", parent)


def test_without_a_lineage_nothing_is_compared_with_a_parent(parent: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no slice\.json, which says what part of a parent this is"):
        verify(parent, parent=parent)


def test_a_weight_file_that_nothing_tells_of_is_found(small: Path) -> None:
    shutil.copyfile(next(small.glob("*.safetensors")), small / "model-00001-of-00099.safetensors")
    with pytest.raises(CheckpointError, match=r"model-00001-of-00099\.safetensors there besides"):
        verify(small)


def test_a_slice_of_a_slice_is_verified_against_its_own_parent(parent: Path, whole: Path, tmp_path: Path) -> None:
    slice_checkpoint(whole, tmp_path / "smaller", SubModel(SliceSpec("smaller", (0, 1, 2), (8,) * 3)))
    assert "3 of 6 layers" in told_of(tmp_path / "smaller", whole)
    with pytest.raises(CheckpointError, match=r"is another parent than slice\.json says"):
        verify(tmp_path / "smaller", parent=parent)


def test_a_slice_with_an_adapter_merged_is_as_it_says_but_not_its_parents(parent: Path, tmp_path: Path) -> None:
    adapted = attach(tiny_model(WHOLE), AdapterConfig(rank=4, alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    save_adapter(adapted, tmp_path / "adapter")
    slice_checkpoint(parent, tmp_path / "small", SMALL)
    slice_adapter(tmp_path / "adapter", tmp_path / "cut", SMALL, WHOLE)
    merge_into(tmp_path / "small", tmp_path / "cut", tmp_path / "merged")
    told = told_of(tmp_path / "merged", parent)
    assert "an adapter was merged since, so the tensors are not the parent's" in told
    card = (tmp_path / "merged" / CARD_FILE).read_text(encoding="utf-8")
    assert "Then an adapter was merged\ninto it" in card
    assert "No weight was changed" not in card
    unmerged = (tmp_path / "small" / CARD_FILE).read_text(encoding="utf-8")
    assert card.partition("| |")[2] == unmerged.partition("| |")[2]
    slice_checkpoint(tmp_path / "merged", tmp_path / "less", SubModel(SliceSpec("less", (0, 1, 2), (8,) * 3)))
    slice_checkpoint(tmp_path / "less", tmp_path / "least", SubModel(SliceSpec("least", (0, 1, 2), (4,) * 3)))
    for name in ("less", "least"):
        card = (tmp_path / name / CARD_FILE).read_text(encoding="utf-8")
        assert "No weight was changed" in card
        assert "An adapter had been merged into that parent" in card
    assert "merged" not in unmerged
    lineage(parent=None)(tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"slice\.json: does not say what a model card tells"):
        merge_into(tmp_path / "small", tmp_path / "cut", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    flip(tmp_path / "merged" / "model.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors changed since"):
        verify(tmp_path / "merged")


def test_a_checkpoint_that_is_no_slice_is_verified_as_far_as_can_be(parent: Path, tmp_path: Path) -> None:
    assert "there is no slice.json: no checksums or lineage to check" in told_of(parent)
    damaged = Path(shutil.copytree(parent, tmp_path / "parent"))
    edit(damaged / INDEX_FILE, lambda index: index["metadata"].update(total_size=7))
    with pytest.raises(CheckpointError, match=r"says total_size 7, but the tensors have \d+ bytes"):
        verify(damaged)
    edit(damaged / INDEX_FILE, lambda index: index.update(metadata=None))
    assert told_of(damaged)


def lineage(**changes: object) -> Callable[[Path], None]:
    """A ``slice.json`` that says something else."""
    return lambda small: edit(small / LINEAGE_FILE, lambda content: content.update(changes))


def spec(**changes: object) -> Callable[[Path], None]:
    """A ``slice.json`` that tells of another sub-model."""
    return lambda small: edit(small / LINEAGE_FILE, lambda content: content["spec"].update(changes))


def config(**changes: object) -> Callable[[Path], None]:
    """A ``config.json`` whose decoder is another."""
    return lambda small: edit(small / "config.json", lambda content: content["text_config"].update(changes))


def unlisted(name: str) -> Callable[[Path], None]:
    """A ``slice.json`` without a file's checksum."""
    return lambda small: edit(small / LINEAGE_FILE, lambda content: content["checksums"].pop(name))


SECOND = "model-00002-of-"
# How a slice is damaged, and what must be said of it; without its parent.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a weight": (
        lambda small: flip(next(small.glob(f"{SECOND}*")), -1),
        rf"{SECOND}\d+\.safetensors changed since the slice was",
    ),
    "a bit of a header": (lambda small: flip(next(small.glob(f"{SECOND}*")), 9), "cut short or not a safetensors file"),
    "a value of the config": (config(rms_norm_eps=1e-5), r"config\.json changed since the slice was written \(SHA-256"),
    "a width of the config": (config(intermediate_size=[16] * 5 + [24]), "3 misshapen"),
    "a missing file": (
        lambda small: (small / "README.md").unlink(), r"README\.md missing; copy it anew, or slice again",
    ),
    "a missing weight file": (lambda small: next(small.glob(f"{SECOND}*")).unlink(), "which is not there; copy it too"),
    "an index of another size": (
        lambda small: edit(small / INDEX_FILE, lambda index: index["metadata"].update(total_size=1)),
        r"says total_size 1, but the tensors have \d+ bytes; model\.safetensors\.index\.json changed since",
    ),
    "an index of no size": (
        lambda small: edit(small / INDEX_FILE, lambda index: index.update(metadata=[])), "changed since",
    ),
    "other widths": (
        spec(ffn_widths=[16] * 5 + [24]), r"says \[16, 16, 16, 16, 16, 24\] widths, by config\.json it is",
    ),
    "more layers": (
        spec(kept_layers=[0, 1, 2, 3, 6, 7, 8], ffn_widths=[16] * 7), r"says 7 layers, by config\.json it is 6",
    ),
    "another count": (lineage(parameters=5), r"says 5 parameters, by config\.json it is \d+"),
    "another text count": (lineage(text_parameters=5), "says 5 text parameters, by config"),
    "another effective count": (lineage(effective_parameters=None), "says None effective parameters, by config"),
    "another published count": (
        lineage(effective_parameters_in_published_layout=0), "says 0 effective parameters in published layout",
    ),
    "other modalities": (
        lineage(modalities=["text"]), r"says \['text'\] modalities, by config\.json it is \['text', 'vis",
    ),
    "audio layers that were not cut": (lineage(audio_layers=[0, 1]), r"says 2 audio layers, by config\.json it is 3"),
    "tokens that were not cut": (
        lineage(vocabulary={"parent_size": 90, "kept": [[0, 9]]}),
        r"says 9 tokens of the text, by config\.json it is 80",
    ),
    "no checksums": (lineage(checksums=None), "slice.json has no checksums"),
    "no checksum of the config": (unlisted("config.json"), r"slice.json has no checksum of config\.json"),
    "no checksum of the weights": (
        lambda small: unlisted(next(small.glob(f"{SECOND}*")).name)(small), f"slice.json has no checksum of {SECOND}",
    ),
    "layers out of order": (
        spec(kept_layers=[0, 1, 2, 7, 6, 8]), r"slice\.json: says what no parent has .* must be ascending",
    ),
    "layers behind the parent's": (
        spec(kept_layers=[0, 1, 2, 6, 7, 99]), "says what no parent has as a part .*0 to 99, but this model has layers",
    ),
    "audio layers out of order": (lineage(audio_layers=[2, 0, 1]), r"keeps layers \[2, 0, 1\] of the audio tower"),
    "unread keys and values of no kind": (lineage(dead_kv="x"), "says nothing known of unread keys and values"),
    "no sub-model": (lineage(spec=None), "slice.json: does not say which part of its parent this is"),
    "a modality of no kind": (lineage(modalities=["smell"]), "does not say which part of its parent this is"),
    "no parent": (lineage(parent=None), "slice.json: does not say which parent this is a part of; slice anew"),
    "a parent of no layers": (lineage(parent={"fingerprint": "a"}), "does not say which parent this is a part of"),
    "no lineage": (lambda small: (small / LINEAGE_FILE).write_text("{"), "slice.json: cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_as_it_was_is_found(what: str, small: Path) -> None:
    assert told_of(small)
    damage, found = BAD[what]
    damage(small)
    with pytest.raises((CheckpointError, ConfigError), match=found):
        verify(small, told=lambda _: None)


def test_audio_layers_behind_the_parents_are_found(parent: Path, tmp_path: Path) -> None:
    slice_checkpoint(parent, tmp_path / "small", SubModel(SPEC, audio_layers=(0, 1)))
    lineage(audio_layers=[1, 7])(tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"says what no parent has .* among 0 to 2\)"):
        verify(tmp_path / "small")


def test_the_adapter_in_a_slice_is_verified_with_it(small: Path, tmp_path: Path) -> None:
    save_adapter(attach(tiny_model(WHOLE), AdapterConfig(rank=4, alpha=8)), tmp_path / "trained")
    slice_adapter(tmp_path / "trained", small / "adapter", SMALL, WHOLE)
    assert "2 files have the SHA-256 that adapter/slice.json says" in told_of(small)
    flip(small / "adapter" / "adapter_model.safetensors", -1)
    (small / "adapter" / "adapter_config.json").unlink()
    found = r"adapter/adapter_config\.json missing; adapter/adapter_model\.safetensors changed since the slice"
    with pytest.raises(CheckpointError, match=found):
        verify(small)
    (small / "adapter" / LINEAGE_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"adapter/slice\.json missing"):
        verify(small)


def test_all_that_is_wrong_is_said_at_once(small: Path) -> None:
    (small / "README.md").unlink()
    lineage(parameters=5)(small)
    flip(next(small.glob(f"{SECOND}*")), -1)
    with pytest.raises(
        CheckpointError, match=rf"README.md missing; {SECOND}.* changed .*; slice.json says 5 parameters"
    ):
        verify(small)


def test_another_parent_is_found(small: Path, tmp_path: Path) -> None:
    table = tiny_model(WHOLE, seed=1).model.language_model.embed_tokens.weight.detach()
    other = write(tmp_path / "other", changed={TOKEN_TABLE: table})
    found = rf"other is another parent than .* differ\); 1 tensor unlike the parent's \({TOKEN_TABLE}\)"
    with pytest.raises(CheckpointError, match=found):
        verify(small, parent=other)


def test_a_parent_that_it_can_be_no_part_of_is_found(small: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", tiny_multimodal_config(intermediate_size=(8,) * 9))
    with pytest.raises(
        CheckpointError, match=r"another parent .*; it is no part of .*other \(slice 'small': layer 0 asks"
    ):
        verify(small, parent=other)
    text = write(tmp_path / "text", tiny_config())
    with pytest.raises(
        CheckpointError, match=r"it is no part of .*text \(modalities: audio, vision asked for, but this"
    ):
        verify(small, parent=text)


def test_a_single_entry_that_differs_is_found_though_the_fingerprint_does_not_see_it(
    small: Path, parent: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(parent, tmp_path / "changed"))
    tensor = Checkpoint.open(changed).stored(UP)
    flip(tensor.path, tensor.start + 1024 + 100)  # in row 8, behind the first of the bytes that are looked at
    assert Checkpoint.open(changed).fingerprint() == Checkpoint.open(parent).fingerprint()
    with pytest.raises(CheckpointError, match=r"small: 1 tensor unlike the parent's \(.*layers\.4\.mlp\.up_proj"):
        verify(small, parent=changed)


def test_layers_of_the_same_shapes_are_told_apart_by_the_parent(small: Path, parent: Path) -> None:
    spec(kept_layers=[0, 1, 2, 3, 7, 8])(small)
    assert told_of(small)  # nothing in the directory says otherwise
    with pytest.raises(CheckpointError, match="tensors unlike the parent's"):
        verify(small, parent=parent)


def test_unread_keys_and_values_of_another_kind_are_found(small: Path, parent: Path) -> None:
    lineage(dead_kv="drop")(small)
    with pytest.raises(CheckpointError, match=r"9 tensors too many \(.*self_attn\.k_norm"):
        verify(small, parent=parent)
    lineage(dead_kv="zeros")(small)
    with pytest.raises(CheckpointError, match=r"tensors unlike the parent's"):
        verify(small, parent=parent)
    lineage(dead_kv="ones")(small)
    with pytest.raises(CheckpointError, match=r"says nothing known of unread keys and values"):
        verify(small, parent=parent)


def test_a_missing_unread_key_is_found(parent: Path, tmp_path: Path) -> None:
    slice_checkpoint(parent, tmp_path / "small", SMALL, dead_kv=DeadKV.drop)
    lineage(dead_kv="keep")(tmp_path / "small")
    assert read_lineage(tmp_path / "small")["dead_kv"] == "keep"
    with pytest.raises(CheckpointError, match=r"9 tensors missing"):
        verify(tmp_path / "small", parent=parent)
