# SPDX-License-Identifier: Apache-2.0
"""A tiny checkpoint, an adapter for it and conversations, on disk as a user has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model.adapter.lora import AdapterConfig, attach, save_adapter
from model.checkpoint.saving import save
from recipes.cli import main
from tests.tiny import tiny_model, tiny_multimodal_config
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor, tiny_tokenizer, write_jsonl

WORDS = ("abc", "hello", "you", "z")
SHORT = ["slice=full", "slice.name=short", "slice.skip_layers=[3,4,5]", "slice.ffn_widths=[24]"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model, with its tokenizer."""
    directory = tmp_path_factory.mktemp("weights") / "tiny"
    save(tiny_model(), directory, extras=tiny_tokenizer().write)
    return directory


@pytest.fixture(scope="session")
def media_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model with both towers, with its processor."""
    directory = tmp_path_factory.mktemp("weights") / "media"
    save(tiny_model(tiny_multimodal_config()), directory, extras=tiny_media_processor().write)
    return directory


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image file, named as cameras and people do."""
    path = tmp_path_factory.mktemp("media") / "my, picture (1)=x.png"
    path.write_bytes(picture_bytes(3))
    return path


@pytest.fixture(scope="session")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file of half a second."""
    path = tmp_path_factory.mktemp("media") / "tone.wav"
    path.write_bytes(sound_bytes(440))
    return path


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the tiny model says."""
    directory = tmp_path_factory.mktemp("adapter") / "lora"
    adapted = attach(tiny_model(), AdapterConfig(rank=4, alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    save_adapter(adapted, directory)
    return directory


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations in which the assistant repeats a word."""
    turns = [[("user", f"say {word}"), ("assistant", word)] for word in WORDS * 3]
    rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in turns]
    return write_jsonl(tmp_path_factory.mktemp("data") / "chat.jsonl", rows)


@pytest.fixture
def train(weights: Path, chat: Path, tmp_path: Path) -> Callable[..., int]:
    """``matslice train`` for two steps on the tiny checkpoint into ``tmp_path / "run"``; gives the exit status."""
    words = [
        "train", f"checkpoint={weights}", f"data.train=[{chat}]", "trainer=cpu", f"trainer.output={tmp_path / 'run'}",
        "trainer.max_steps=2", "trainer.batch_size=2", "trainer.log_every=1", "schedule.warmup_steps=0",
    ]  # fmt: skip
    return lambda *more: main([*words, *more])
