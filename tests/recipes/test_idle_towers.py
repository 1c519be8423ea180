# SPDX-License-Identifier: Apache-2.0
"""Towers that no row, no prompt and nothing trained needs stay on disk, and the numbers are the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.adapter.lora import AdapterConfig, attach, save_adapter
from model.adapter.targets import DECODER, TargetSet
from model.checkpoint.names import TIED_HEAD, TOKEN_TABLE
from recipes.cli import main
from tests.recipes.broken import WEIGHTS_FILE
from tests.tiny import tiny_model, tiny_multimodal_config
from tests.trainer.parts import write_jsonl
from trainer.sinks import METRICS_FILE, read_records

Train = Callable[..., int]


@pytest.fixture
def train_on(media_weights: Path, tmp_path: Path) -> Train:
    """``matslice train`` for a step on a checkpoint with both towers, into ``tmp_path / "run"``."""
    words = [
        "train", f"checkpoint={media_weights}", "trainer=cpu", f"trainer.output={tmp_path / 'run'}",
        "trainer.max_steps=1", "trainer.batch_size=1", "schedule.warmup_steps=0",
    ]  # fmt: skip
    return lambda *more: main([*words, *more])


@pytest.fixture
def seen(picture: Path, tmp_path: Path) -> Path:
    """A row about an image."""
    turns = [
        {"role": "user", "content": [{"type": "image", "path": str(picture)}]},
        {"role": "assistant", "content": "abc"},
    ]
    return write_jsonl(tmp_path / "seen.jsonl", [{"messages": turns}])


def loaded(run: Path) -> list[str]:
    """What the start record says."""
    begun, *_ = read_records(run / METRICS_FILE)
    return begun["modalities"]


def test_an_adapter_trained_on_text_leaves_the_towers_on_disk(train_on: Train, chat: Path, tmp_path: Path) -> None:
    assert train_on(f"data.train=[{chat}]", f"data.soft_token_cache={tmp_path / 'cache'}") == 0
    assert loaded(tmp_path / "run") == ["text"]
    assert not (tmp_path / "cache").exists()


def test_a_tower_is_loaded_for_a_row_to_be_measured_on(train_on: Train, chat: Path, seen: Path, tmp_path: Path) -> None:
    assert train_on(f"data.train=[{chat}]", f"data.validation=[{seen}]") == 0
    assert loaded(tmp_path / "run") == ["text", "vision"]


def test_a_tower_that_is_adapted_is_loaded(train_on: Train, seen: Path, tmp_path: Path) -> None:
    assert train_on(f"data.train=[{seen}]", "adapter.targets=[attention,audio]") == 0
    assert loaded(tmp_path / "run") == ["text", "vision", "audio"]


def test_a_whole_model_is_trained_and_saved_with_its_towers(train_on: Train, chat: Path, tmp_path: Path) -> None:
    assert train_on(f"data.train=[{chat}]", "adapter=none") == 0
    assert loaded(tmp_path / "run") == ["text", "vision", "audio"]


@pytest.fixture
def without_towers(media_weights: Path, tmp_path: Path) -> Path:
    """The checkpoint, whose towers could not be read."""
    directory = Path(shutil.copytree(media_weights, tmp_path / "half"))
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file({name: tensors[name] for name in tensors if name.startswith(DECODER)}, directory / WEIGHTS_FILE)
    return directory


@pytest.fixture
def unloadable(media_weights: Path, tmp_path: Path) -> Path:
    """The checkpoint with a head of its own, which is only found out while weights are read."""
    directory = Path(shutil.copytree(media_weights, tmp_path / "headed"))
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file(tensors | {TIED_HEAD: torch.zeros_like(tensors[TOKEN_TABLE])}, directory / WEIGHTS_FILE)
    return directory


@pytest.fixture
def of_a_tower(tmp_path: Path) -> Path:
    """An adapter of the vision tower that changes nothing yet."""
    gemma = tiny_model(tiny_multimodal_config())
    save_adapter(attach(gemma, AdapterConfig(targets=[TargetSet.vision])), tmp_path / "lora")
    return tmp_path / "lora"


def test_text_is_measured_without_towers_and_comes_out_the_same(
    media_weights: Path, without_towers: Path, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for checkpoint in (media_weights, without_towers):
        output = tmp_path / f"{checkpoint.name}.jsonl"
        words = ["evaluate", f"checkpoint={checkpoint}", f"files=[{chat}]", f"output={output}"]
        assert main([*words, f"soft_token_cache={tmp_path / 'cache'}"]) == 0
        assert capsys.readouterr().err.startswith("loads text; no row needs vision or audio\n")
        told.append(json.loads(output.read_text(encoding="utf-8")))
    assert told[0] == told[1]
    assert not (tmp_path / "cache").exists()


def test_rows_about_images_are_not_measured_without_their_tower(
    without_towers: Path, seen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"checkpoint={without_towers}", f"files=[{seen}]"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("loads text and vision; no row needs audio\nerror: ")
    assert "missing ('model.embed_vision." in told


def test_text_is_answered_without_towers(
    media_weights: Path, without_towers: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "prompt=who", "generation.max_new_tokens=12"]
    assert main([*words, f"checkpoint={without_towers}"]) == 0
    answer = capsys.readouterr().out
    assert main([*words, f"checkpoint={media_weights}"]) == 0
    assert capsys.readouterr().out == answer
    assert main([*words, f"checkpoint={without_towers}", f"image={picture}"]) == 2


@pytest.mark.parametrize("recipe", ["evaluate", "generate"])
def test_an_adapter_brings_its_tower(
    recipe: str, media_weights: Path, without_towers: Path, of_a_tower: Path, chat: Path
) -> None:
    words = [recipe, f"files=[{chat}]"] if recipe == "evaluate" else [recipe, "prompt=who"]
    assert main([*words, f"checkpoint={media_weights}", f"adapter_path={of_a_tower}"]) == 0
    assert main([*words, f"checkpoint={without_towers}", f"adapter_path={of_a_tower}"]) == 2


def broken(adapter: Path) -> Path:
    """The adapter with factors of other shapes."""
    file = adapter / "adapter_model.safetensors"
    save_file({name: torch.cat((factor, factor)) for name, factor in load_file(file).items()}, file)
    return adapter


MISFITS: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {  # what is made of the adapter, told -> said
    "not there": (lambda _: Path("nowhere"), [], "nowhere: no adapter_config.json there"),
    "of a tower that is left out": (
        lambda adapter: adapter, ["modalities=[text,audio]"], "vision part, but this model has text, audio;",
    ),
    "of another shape": (broken, [], "lora: does not fit this model: "),
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["evaluate", "generate", "merge"])
@pytest.mark.parametrize("fault", MISFITS)
def test_an_adapter_that_cannot_fit_is_refused_before_weights_are_read(
    recipe: str, fault: str, unloadable: Path, of_a_tower: Path, chat: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make, more, told = MISFITS[fault]
    if recipe == "merge":
        more = []  # a merged model keeps its towers: there the adapter fits, and the weights are what is refused
        told = "a model with a head of its own" if fault == "of a tower that is left out" else told
    words = {
        "evaluate": [f"files=[{chat}]"], "generate": ["prompt=who"], "merge": [f"output={tmp_path / 'out'}"],
    }[recipe]  # fmt: skip
    assert main([recipe, f"checkpoint={unloadable}", f"adapter_path={make(of_a_tower)}", *words, *more]) == 2
    assert told in capsys.readouterr().err


def test_an_adapter_of_which_a_slice_leaves_nothing_may_be_left_out(
    media_weights: Path, of_a_tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slice", f"checkpoint={media_weights}", "slice=full", f"output={tmp_path / 'out'}", "modalities=[text]"]
    assert main([*words, f"adapter_path={of_a_tower}"]) == 2
    told = capsys.readouterr().err
    assert "nothing is left of it; leave adapter_path out, or keep what it adapts (skip_layers, modalities)" in told
    assert not (tmp_path / "out").exists()
