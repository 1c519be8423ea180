# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from transformers import AutoConfig, Gemma3nTextConfig

from model.config import ModelConfig, TextConfig
from tests.tiny import TINY_TEXT, tiny_config

pytestmark = pytest.mark.parity


def test_transformers_reads_what_we_write(tmp_path: Path) -> None:
    mixed = tiny_config(intermediate_size=(48, 24, 40) * 3, rope_theta=5e5)
    mixed.write(tmp_path)
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, Gemma3nTextConfig)
    assert theirs.intermediate_size == [48, 24, 40] * 3
    assert theirs.rope_parameters is not None
    assert theirs.rope_parameters["full_attention"]["rope_theta"] == 5e5
    assert theirs.layer_types == list(TINY_TEXT.layer_types)


@pytest.mark.parametrize("layers", [35, 30, 10])
def test_we_read_what_transformers_writes(tmp_path: Path, layers: int) -> None:
    theirs = Gemma3nTextConfig(num_hidden_layers=layers, num_kv_shared_layers=layers - 20 if layers > 20 else 3)
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.read(tmp_path).text
    for field in dataclasses.fields(TextConfig):
        if hasattr(theirs, field.name) and not field.name.startswith("rope") and field.name != "eos_token_id":
            value = getattr(theirs, field.name)
            assert getattr(ours, field.name) == (tuple(value) if isinstance(value, list) else value), field.name
