# SPDX-License-Identifier: Apache-2.0
"""Evaluation keeps rows as training does, and needs no per-layer table on the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from model.adapter.lora import with_our_layers
from recipes.cli import main
from tests.tiny import tiny_model


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
