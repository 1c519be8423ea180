# SPDX-License-Identifier: Apache-2.0
"""What slicing says beside its result: which runtimes load it and with what remedy; in its card, where it is from."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest

from recipes.cli import main

ONLY_WITH = " load it only with dead_kv=zeros: they want keys and values that nothing reads"
NEVER, WHY = "note: does not load in ", "; matslice plan says why"


def notes(capsys: pytest.CaptureFixture[str], parent: Path, *words: str) -> list[str]:
    """The lines on standard error."""
    capsys.readouterr()
    assert main(["slice", f"checkpoint={parent}", *words]) == 0
    return capsys.readouterr().err.splitlines()


def refusing(capsys: pytest.CaptureFixture[str], parent: Path) -> set[str]:
    """The runtimes that a plan of the whole says no to."""
    capsys.readouterr()
    assert main(["plan", f"model={parent}", "slice=full", "json=true"]) == 0
    return {one["runtime"] for one in json.loads(capsys.readouterr().out)["runtimes"] if not one["runs"]}


@pytest.mark.parametrize("dead_kv", ["keep", "drop", "zeros"])  # of keep: the parent has none
def test_who_wants_dead_keys_and_values_is_told_with_the_remedy_and_others_as_plan_tells_them(
    media_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dead_kv: str
) -> None:
    words = ["slice=full", f"dead_kv={dead_kv}", f"output={tmp_path / 'out'}"]
    never, *others = notes(capsys, media_weights, *words)
    assert never.startswith(NEVER)
    assert never.endswith(WHY)
    assert set(never.removeprefix(NEVER).removesuffix(WHY).split(", ")) == refusing(capsys, media_weights)
    remedied = [f"note: mlx-lm, mlx-vlm, mistral.rs{ONLY_WITH}"]
    assert others == ([] if dead_kv == "zeros" else remedied)


def test_a_slice_that_has_dead_keys_and_values_is_not_told_to_get_them(
    media_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes(capsys, media_weights, "slice=full", "dead_kv=zeros", f"output={tmp_path / 'parent'}")
    told = notes(capsys, tmp_path / "parent", "slice=full", f"output={tmp_path / 'out'}")
    assert not [note for note in told if ONLY_WITH in note]


def test_a_parent_from_the_hub_is_the_base_model_in_the_card(
    media_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(media_weights))
    output = tmp_path / "out"
    assert main(["slice", "checkpoint=google/gemma-3n-E4B-it", "slice=full", f"output={output}"]) == 0
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "\nbase_model: google/gemma-3n-E4B-it\n" in card.split("---")[1]
    assert "checkpoint (`google/gemma-3n-E4B-it`, fingerprint `" in card
    assert main(["verify", f"checkpoint={output}", f"parent={media_weights}"]) == 0
