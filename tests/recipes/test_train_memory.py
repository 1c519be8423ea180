# SPDX-License-Identifier: Apache-2.0
"""Settings that trade time or host memory for the device's change no number of a training run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.layers.embedding import HostTable
from trainer.sinks import METRICS_FILE, read_records

ADAPTER = "adapter_model.safetensors"


def told(output: Path) -> list[Any]:
    """Losses and gradient norms of a run, training and validation, and how many parameters it counted."""
    keys = ("loss", "gradient_norm", "total_parameters")
    return [[record.get(key) for key in keys] for record in read_records(output / METRICS_FILE)]


@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.per_layer_table=host"],
        ["trainer.per_layer_table=mmap", "trainer.recompute.text=selective"],
        ["trainer.recompute.text=every", "trainer.recompute.every=4"],
    ],
    ids=" ".join,
)
def test_the_adapter_is_the_same_to_the_last_bit(
    train: Callable[..., int], tmp_path: Path, chat: Path, settings: list[str]
) -> None:
    validation = f"data.validation=[{chat}]"
    outputs = [tmp_path / "plain", tmp_path / "set"]
    assert train(validation, f"trainer.output={outputs[0]}") == 0
    assert train(validation, *settings, f"trainer.output={outputs[1]}") == 0
    assert told(outputs[0]) == told(outputs[1])
    plain, found = (load_file(output / "weights" / ADAPTER) for output in outputs)
    assert plain.keys() == found.keys()
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_rows_are_gathered_with_the_batch_and_not_again(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    look_up = HostTable.forward

    def watched(table: HostTable, ids: Any, gathered: Any = None) -> Any:
        seen.append(gathered is not None)
        return look_up(table, ids, gathered)

    monkeypatch.setattr(HostTable, "forward", watched)
    assert train("trainer.per_layer_table=mmap") == 0
    assert seen
    assert all(seen)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["adapter=none"], r"'model\.language_model\.embed_tokens_per_layer\.weight' is trained, and a table"),
        (
            ["checkpoint=null", "model=tiny", "modalities=[text]", "tokenizer={weights}"],
            r"the model is drawn anew, its table too; give checkpoint=",
        ),
        (["trainer.recompute.every=0"], r"recompute\.every is 0; it must be at least 1 layer"),
        (["trainer.recompute.text=reentrant"], r"trainer\.recompute\.text"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_read(
    train: Callable[..., int], tmp_path: Path, weights: Path, words: list[str], answer: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train("trainer.per_layer_table=mmap", *(word.format(weights=weights) for word in words)) != 0
    assert re.search(answer, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run").exists()
