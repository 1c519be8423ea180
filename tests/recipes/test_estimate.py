# SPDX-License-Identifier: Apache-2.0
"""``matslice estimate`` takes the words of training and tells its memory, without data or weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.cli import main

pytestmark = pytest.mark.slow

WORDS = ["estimate", "model=tiny", "trainer=cpu", "data.max_length_tokens=64", "trainer.batch_size=2"]


def test_words_of_training_give_a_table_without_any_file(capsys: pytest.CaptureFixture[str]) -> None:
    # Of a GPU: for so little, this process may have enough memory left over.
    words = [*WORDS, "where=cuda", "compare=false", "data.train=[nowhere.jsonl]", "trainer.output=runs/none"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("activations", "optimizer states", "total", "2 × 64 tokens"))
    assert not Path("runs/none").exists()


@pytest.mark.slow
def test_json_has_bytes_that_add_up_and_what_others_save(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", f"checkpoint={weights}", "trainer=cpu", "data.pack_tokens=256", "data.max_length_tokens=128"]
    assert main([*words, "trainer.batch_size=1", "adapter=ffn", "where=cuda", "json=true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["on"] == "cuda"
    assert found["tokens_per_row"] == 256
    assert sum(found["bytes"].values()) == found["total"]
    assert "trainer.recompute.text=full" in found["savings"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no model is given"),
        (["model=tiny", "data.max_length_tokens=4096"], "the model has 2048 positions"),
        (["model=tiny", "adapter=none", "trainer.per_layer_table=host"], "the table is trained"),
        (["model=tiny", "freeze=[text]"], "leave freeze out"),
        (["model=tiny", "trainer.batch_size=0"], "at least 1"),
    ],
)
def test_what_cannot_be_run_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "trainer=cpu", *words]) == 2
    assert told in capsys.readouterr().err
