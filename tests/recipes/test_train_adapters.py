# SPDX-License-Identifier: Apache-2.0
"""Kinds of adapter and what stays frozen, from the command line: told, trained, gone on with, refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.adapter.config import AdapterConfig
from model.adapter.lora import load_adapter
from model.checkpoint.load import load
from model.errors import SliceError
from recipes.cli import main
from recipes.run_identity import refuse_names

pytestmark = pytest.mark.slow

LAYERS = "adapter.targets_matching=['.*layers.[01].per_layer_projection']"


def test_where_an_adapter_sits_is_told_and_its_own_ranks_are_saved(
    train: Callable[..., int], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adapter=ffn", LAYERS, "adapter.exclude_matching=['.*gate_proj']", "adapter.dora=true"]
    assert train(*words, "+adapter.rank_pattern={up_proj:3}", "adapter.rslora=true") == 0
    told = capsys.readouterr().err
    layers = load(weights, dtype=torch.float32).config.text.num_hidden_layers
    assert f"adapter: {2 * layers + 2} modules" in told
    assert f"  ffn: {3 * layers} modules, such as model.language_model.layers.0.mlp.gate_proj" in told
    assert "  .*layers.[01].per_layer_projection: 2 modules, such as model.language_model.layers.0.per_layer" in told
    adapted = load_adapter(load(weights, dtype=torch.float32), tmp_path / "run" / "weights")
    ranks = {name.split(".")[-4]: len(own) for name, own in adapted.named_parameters() if "lora_A" in name}
    assert ranks == {"up_proj": 3, "down_proj": 16, "per_layer_projection": 16}
    written = json.loads((tmp_path / "run" / "weights" / "adapter_config.json").read_text())
    assert written["use_dora"]
    assert written["use_rslora"]


@pytest.mark.slow
def test_an_adapter_that_began_as_a_part_of_the_weights_fits_the_base_and_is_begun_anew_from(
    train: Callable[..., int], weights: Path, tmp_path: Path
) -> None:
    assert train("adapter=attention", "adapter.rank=2", "adapter.init=pissa") == 0
    written = json.loads((tmp_path / "run" / "weights" / "adapter_config.json").read_text())
    assert written["r"] == 4
    assert written["init_lora_weights"] is True
    load_adapter(load(weights, dtype=torch.float32), tmp_path / "run" / "weights")
    assert main(["train", f"resume={tmp_path / 'run'}", "fork=true", f"trainer.output={tmp_path / 'fork'}"]) == 0


def test_parameters_named_by_expressions_are_not_trained(
    train: Callable[..., int], weights: Path, tmp_path: Path
) -> None:
    assert train("adapter=none", "freeze_matching=['.*layers.[01].*','.*embed_tokens.*']") == 0
    before = dict(load(weights, dtype=torch.float32).named_parameters())
    for name, own in load(tmp_path / "run" / "weights", dtype=torch.float32).named_parameters():
        is_frozen = ".layers.0." in name or ".layers.1." in name or "embed_tokens" in name
        assert torch.equal(own, before[name]) is is_frozen, name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["adapter.targets_matching=[up_proj]"], "targets_matching: 'up_proj' matches none"),
        (["adapter.exclude_matching=['.*vision.*']"], "exclude_matching: '.*vision.*' matches none"),
        (["+adapter.rank_pattern={per_layer_projection:2}"], "rank_pattern: 'per_layer_projection' matches none"),
        (["adapter.init=loftq"], "adapter.init is 'loftq'"),
        (["adapter.init=pissa", "adapter.rank=64"], "takes 64 parts of the weight of"),
        (["adapter.dora=true", "adapter.init=olora"], "exclude each other"),
        (["freeze_matching=['.*norm.*']"], "an adapter's base is frozen anyway"),
        (["adapter=none", "freeze_matching=[norm]"], "freeze_matching: 'norm' matches none"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_weights_are_read(
    train: Callable[..., int], tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*words) != 0
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("adapter", "frozen", "told"),
    [
        ({"alpha_pattern": {"up_proj": 3}}, [], "adapter.alpha_pattern, whose expressions mean other modules"),
        ({"targets_matching": [".*up_proj"]}, [], "adapter.targets_matching, whose expressions"),
        ({"dora": True}, [], "adapter.dora, whose magnitudes cannot be cut"),
        (None, [".*norm.*"], "freeze_matching, whose expressions"),
    ],
)
def test_a_run_that_means_other_modules_in_a_sub_model_is_not_sliced(
    adapter: dict[str, Any] | None, frozen: list[str], told: str
) -> None:
    written = adapter and dataclasses.asdict(AdapterConfig(**adapter))
    with pytest.raises(SliceError, match=told):
        refuse_names({"adapter": written, "freeze_matching": frozen})
    refuse_names({"adapter": dataclasses.asdict(AdapterConfig(init="pissa", rslora=True))})
