# SPDX-License-Identifier: Apache-2.0
"""Slicing and merging of checkpoints with towers, from the command line: towers are kept whole, or left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.adapter.lora import AdapterConfig, attach, load_adapter, save_adapter
from model.adapter.targets import TargetSet
from model.checkpoint.load import load
from model.checkpoint.reader import Checkpoint
from model.gemma3n import Gemma3n
from model.tower_config import Modality
from recipes.cli import main
from tests.daily import daily
from tests.recipes.conftest import SHORT
from tests.tiny import tiny_model, tiny_multimodal_config, tiny_multimodal_inputs


@pytest.fixture(scope="module")
def media_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the decoder, both towers and what stands between."""
    directory = tmp_path_factory.mktemp("adapter") / "lora"
    targets = [TargetSet.attention, TargetSet.vision, TargetSet.audio, TargetSet.embedders]
    adapted = attach(tiny_model(tiny_multimodal_config()), AdapterConfig(targets=targets, rank=4, alpha=8))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    save_adapter(adapted, directory)
    return directory


def logits(gemma: object) -> torch.Tensor:
    inputs = tiny_multimodal_inputs(tiny_multimodal_config(), "text image text audio", "audio text")
    with torch.no_grad():
        return gemma(inputs).logits  # pyright: ignore[reportCallIssue]: a model, adapted or not


def tower_size(gemma: Gemma3n, *modalities: str) -> int:
    parts = tuple(f"model.{place}" for m in modalities for place in (f"{m}_tower.", f"embed_{m}."))
    return sum(p.numel() for name, p in gemma.named_parameters() if name.startswith(parts))


def test_a_slice_keeps_its_towers_and_says_how_large_they_are(
    media_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small"
    assert main(["slice", f"checkpoint={media_weights}", *SHORT, f"output={output}", "check=true"]) == 0
    gemma = load(output, dtype=torch.float32)
    total, towers = sum(p.numel() for p in gemma.parameters()), tower_size(gemma, "vision", "audio")
    told = capsys.readouterr().out
    assert "checked: differs from its parent" in told
    assert f"short: {total - towers:,} text parameters, " in told
    assert f"; {towers:,} for vision and audio, {total:,} in all: {output}\n" in told
    assert (output / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("kept", ["vision", "audio"])
def test_a_slice_may_leave_out_a_tower(
    kept: str, media_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slice", f"checkpoint={media_weights}", *SHORT, f"output={tmp_path / 'small'}", "check=true"]
    assert main([*words, f"modalities=[text,{kept}]"]) == 0
    left_out = "audio" if kept == "vision" else "vision"
    gemma = load(tmp_path / "small", dtype=torch.float32)
    assert gemma.config.modalities == (Modality.text, Modality(kept))
    told = capsys.readouterr().out
    assert f"; {tower_size(gemma, kept):,} for {kept}, " in told
    assert f"; left out: {left_out}: " in told


def test_a_slice_of_text_alone_is_that_of_the_text_model(
    media_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slice", f"checkpoint={media_weights}", *SHORT, f"output={tmp_path / 'small'}", "check=true"]
    assert main([*words, "modalities=[text]"]) == 0
    assert not Checkpoint.open(tmp_path / "small").config.is_multimodal
    assert "effective; left out: vision, audio: " in capsys.readouterr().out
    words = ["generate", f"checkpoint={tmp_path / 'small'}", "prompt=who", "generation.max_new_tokens=3"]
    assert main(words) == 0


def test_merging_gives_the_model_that_the_adapter_made_towers_included(
    media_weights: Path, media_adapter: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert main(["merge", f"checkpoint={media_weights}", f"adapter_path={media_adapter}", f"output={merged}"]) == 0
    base = load(media_weights, dtype=torch.float32)
    before, expected = logits(base), logits(load_adapter(base, media_adapter))
    # The update is added to the weight and no longer to the output: float32 sums in another order.
    torch.testing.assert_close(logits(load(merged, dtype=torch.float32)), expected, rtol=0, atol=1e-3)
    assert (before - expected).abs().max() > 0.1


@pytest.mark.parametrize("modalities", daily(["null", "[audio]", "[text]"], "[audio]"))
@pytest.mark.parametrize("merge", ["true", "false"])
def test_an_adapter_of_towers_is_sliced_with_those_that_are_kept(
    merge: str, modalities: str, media_weights: Path, media_adapter: Path, tmp_path: Path
) -> None:
    words = ["slice", f"checkpoint={media_weights}", f"adapter_path={media_adapter}", f"merge={merge}", "check=true"]
    assert main([*words, *SHORT, f"modalities={modalities}", f"output={tmp_path / 'small'}"]) == 0
