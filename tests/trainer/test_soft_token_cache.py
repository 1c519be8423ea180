# SPDX-License-Identifier: Apache-2.0
"""What kept soft tokens are kept for, and what becomes of files and directories that are not as they should be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from model.adapter.lora import AdapterConfig, attach
from model.adapter.targets import TargetSet
from model.errors import ConfigError
from model.gemma3n import Gemma3n
from model.inputs import SoftTokens
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.processor.settings import AudioSettings, ImageSettings
from tests.tiny import TINY_PICTURE_PX, tiny_model, tiny_multimodal_config
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor, tiny_media_tokenizer
from trainer import soft_token_cache
from trainer.soft_token_cache import SoftTokenCache

PICTURE, RECORDING = Picture(picture_bytes(1)), Recording(sound_bytes(300))
PROCESSOR = tiny_media_processor()
SOFT = SoftTokens(features=torch.randn(1, 16, 64), mask=torch.ones(1, 16, dtype=torch.bool))


def places(model: Gemma3n, processor: Processor = PROCESSOR) -> tuple[str, str]:
    """The names of the files that a picture's and a recording's soft tokens are in."""
    cache = SoftTokenCache.of(Path("."), model, processor, torch.device("cpu"))
    return cache.path(PICTURE).name, cache.path(RECORDING).name


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches are made in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cache() -> SoftTokenCache:
    """A cache of the tiny towers."""
    return SoftTokenCache.of(Path("kept"), tiny_model(tiny_multimodal_config()), PROCESSOR, torch.device("cpu"))


def move_a_weight(model: Gemma3n) -> None:
    """Change the first weight of the vision tower."""
    assert model.model.vision_tower is not None
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).flatten()[0] += 1


def set_in_towers(model: Gemma3n) -> None:
    """Change settings of both towers that have no weights."""
    towers = model.model
    assert towers.vision_tower is not None
    assert towers.audio_tower is not None
    towers.vision_tower.config = dataclasses.replace(towers.vision_tower.config, rms_norm_eps=1e-3)
    towers.audio_tower.config = dataclasses.replace(towers.audio_tower.config, conf_residual_weight=0.1)


@pytest.mark.parametrize(
    ("change", "which"),
    [
        (Gemma3n.eval, (False, False)),
        (move_a_weight, (True, False)),
        (set_in_towers, (True, True)),
        (lambda model: model.to(torch.bfloat16), (True, True)),
    ],
    ids=["nothing", "a weight", "settings", "dtype"],
)
def test_soft_tokens_are_kept_for_these_towers_alone(
    change: Callable[[Gemma3n], object], which: tuple[bool, bool]
) -> None:
    model = tiny_model(tiny_multimodal_config())
    before = places(model)
    change(model)
    assert tuple(a != b for a, b in zip(before, places(model), strict=True)) == which


def test_soft_tokens_are_kept_for_this_preparation_alone() -> None:
    model = tiny_model(tiny_multimodal_config())
    size, mels = ImageSettings(height=TINY_PICTURE_PX, width=TINY_PICTURE_PX), AudioSettings(feature_size=16)
    other = Processor.create(
        tiny_media_tokenizer(), tiny_multimodal_config(), image=dataclasses.replace(size, resample=3),
        audio=dataclasses.replace(mels, mel_floor=1e-3),
    )  # fmt: skip
    same = Processor.create(tiny_media_tokenizer(), tiny_multimodal_config(), image=size, audio=mels)
    assert places(model, same) == places(model)
    assert all(a != b for a, b in zip(places(model), places(model, other), strict=True))


def test_soft_tokens_are_kept_for_these_packages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_multimodal_config())
    before = places(model)
    monkeypatch.setattr(soft_token_cache, "version", lambda name: "0" if name == "pillow" else "1")
    assert all(a != b for a, b in zip(before, places(model), strict=True))


def test_an_adapter_of_the_same_weights_that_counts_for_less_has_soft_tokens_of_its_own() -> None:
    model = tiny_model(tiny_multimodal_config())
    attach(model, AdapterConfig(rank=4, alpha=8, targets=[TargetSet.vision]))
    before = places(model)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] = 0.5
    after = places(model)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_file_that_cannot_be_used_counts_as_none(cache: SoftTokenCache) -> None:
    cache.write(PICTURE, SOFT)
    kept = cache.read(PICTURE)
    assert kept is not None
    assert torch.equal(kept.features, SOFT.features)
    whole = cache.path(PICTURE).read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for damaged in (bytes(flipped), whole[:-3], b""):
        cache.path(PICTURE).write_bytes(damaged)
        assert cache.read(PICTURE) is None
    cache.path(PICTURE).unlink()
    cache.path(PICTURE).mkdir()
    assert cache.read(PICTURE) is None
    cache.write(PICTURE, SOFT)  # which is no reason to end a run
    assert [path.name for path in cache.path(PICTURE).parent.iterdir()] == [cache.path(PICTURE).name]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_no_file(
    cache: SoftTokenCache, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(path: Path, target: Path) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ConfigError if isinstance(error, OSError) else KeyboardInterrupt, match=r"No space|^$"):
        cache.write(PICTURE, SOFT)
    assert not [path for path in cache.directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("where", ["file", "file/inside"])
def test_a_directory_that_cannot_be_made_is_refused_by_its_setting(where: str) -> None:
    Path("file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"soft_token_cache: '{where}' is no directory that can be written to"):
        SoftTokenCache(Path(where), {})
