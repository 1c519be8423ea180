# SPDX-License-Identifier: Apache-2.0
"""Evaluation finds what a sweep finds, keeps rows as training does, and needs no per-layer table on the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from model.adapter.lora import with_our_layers
from recipes import build
from recipes.cli import main
from tests.recipes.conftest import SHORT
from tests.tiny import tiny_model
from trainer.sweep.store import ROWS_FILE


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("merge", ["", "merge=false"], ids=["folded in", "beside the weights"])
def test_a_size_is_found_as_a_sweep_finds_it_to_the_last_bit(
    merge: str, weights: Path, adapter: Path, chat: Path, tmp_path: Path
) -> None:
    said = [f"checkpoint={weights}", f"adapter_path={adapter}", *filter(None, [merge])]
    sizes = ["+slice@sizes.short=full", *(word.replace("slice.", "sizes.short.") for word in SHORT[1:])]
    assert main(["evaluate", *said, *sizes, f"files=[{chat}]", "batch_size=5", f"output={tmp_path / 'rows'}"]) == 0
    slices = []
    for name, layers in {"full": {}, "short": {"skip_layers": [3, 4, 5], "ffn_widths": [24]}}.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"name": name, **layers}))
        slices.append(str(tmp_path / f"{name}.yaml"))
    task = {"name": "words", "kind": "held_out", "files": [str(chat)], "batch_size": 5}
    (tmp_path / "task.yaml").write_text(json.dumps({**task, "metrics": ["loss", "perplexity", "accuracy"]}))
    words = ["sweep", *said, f"slices=[{','.join(slices)}]", f"tasks={tmp_path / 'task.yaml'}"]
    assert main([*words, "statistics.num_resamples=100", f"output={tmp_path / 'swept'}"]) == 0
    swept = {row["spec"]["name"]: row["metrics"] for row in rows_of(tmp_path / "swept" / ROWS_FILE)}
    for row in rows_of(tmp_path / "rows"):
        figures = swept[row["size"]]
        assert {name: row[name] for name in figures} == {name: figure["value"] for name, figure in figures.items()}
    assert swept.keys() == {"full", "short"}


@pytest.mark.parametrize("command", ["evaluate", "sweep", "search"])
def test_an_adapter_that_cannot_be_folded_in_is_refused_before_weights_are_read(
    command: str, weights: Path, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = with_our_layers(LoraConfig(r=2, target_modules=["embed_tokens"]))
    get_peft_model(tiny_model(), config).save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "task.yaml").write_text(json.dumps({"name": "words", "kind": "held_out", "files": [str(chat)]}))
    said = [f"tasks={tmp_path / 'task.yaml'}"] if command == "sweep" else [f"files=[{chat}]"]
    words = [command, f"checkpoint={weights}", f"adapter_path={tmp_path / 'adapter'}", *said]
    with monkeypatch.context() as patch:
        patch.setattr(build, "load", lambda *_args, **_options: pytest.fail("weights are read"))
        assert main([*words, f"output={tmp_path / 'out'}"]) == 2
    assert "so such an adapter cannot be merged; use it beside the weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    if command == "evaluate":
        assert main([*words, "merge=false"]) == 0


def test_kept_rows_and_a_table_elsewhere_change_no_score(
    weights: Path, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"checkpoint={weights}", f"files=[{chat},{chat}]", "max_examples=17"]
    assert main([*words, f"output={tmp_path / 'plain.jsonl'}"]) == 0
    kept = [f"token_cache={tmp_path / 'cache'}"]
    for name, more in {"new": kept, "kept": [*kept, "per_layer_table=host"], "mmap": ["per_layer_table=mmap"]}.items():
        capsys.readouterr()
        assert main([*words, *more, f"output={tmp_path / name}"]) == 0
        assert ("token_cache: 24 rows kept" in capsys.readouterr().err) == (name == "new")
        assert rows_of(tmp_path / name) == rows_of(tmp_path / "plain.jsonl")


def test_what_cannot_be_is_told_by_the_names_that_evaluation_has(
    weights: Path, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"checkpoint={weights}", f"files=[{chat}]"]
    (tmp_path / "file").touch()
    assert main([*words, f"token_cache={tmp_path / 'file'}"]) == 2
    assert "error: token_cache: '" in capsys.readouterr().err
    config = with_our_layers(LoraConfig(r=2, target_modules=["embed_tokens_per_layer"]))
    get_peft_model(tiny_model(), config).save_pretrained(str(tmp_path / "adapter"))
    words += [f"adapter_path={tmp_path / 'adapter'}"]
    assert main([*words, "per_layer_table=host"]) == 2
    assert "changes the per-layer table, which takes no adapter where it lies" in capsys.readouterr().err
    assert main([*words, "max_length_tokens=3"]) == 2
    assert "a larger max_length_tokens measures such rows too" in capsys.readouterr().err
