# SPDX-License-Identifier: Apache-2.0
"""Towers that no row, no prompt and nothing trained needs stay on disk, and the numbers are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.cli import main
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
