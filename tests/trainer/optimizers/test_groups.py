# SPDX-License-Identifier: Apache-2.0
"""Who learns how fast: groups by name, vectors without decay, and the fast half of an adapter."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.adapter.lora import AdapterConfig, PeftModel, attach, save_adapter
from model.adapter.targets import TargetSet
from model.errors import ConfigError
from model.gemma3n import Gemma3n
from model.slicing.adapter import ADAPTER_WEIGHTS_FILE, PREFIX
from tests.tiny import tiny_config, tiny_model, tiny_multimodal_config
from tests.trainer.optimizers.gradients import give_gradients, trained
from trainer.optim import build_optimizer, refuse_unusable
from trainer.optimizers.config import GroupConfig, OptimConfig
from trainer.optimizers.groups import describe_groups, published_name, set_learning_rate

RATE = 1e-3


def adapted() -> PeftModel:
    return attach(tiny_model(), AdapterConfig(targets=[TargetSet.attention], rank=2, alpha=4))


@cache
def empty() -> Gemma3n:
    return Gemma3n.build(tiny_config(), device="meta")


def treatments(model: torch.nn.Module, **changes: Any) -> dict[str, tuple[float, float]]:
    """Of each parameter, by published name: the scale of its learning rate, and its weight decay."""
    optimizer = build_optimizer(model, OptimConfig(**dict[str, Any](learning_rate=RATE) | changes))
    found = {
        published_name(name): (group["learning_rate_scale"], group["weight_decay"])
        for group in optimizer.param_groups for name in group["param_names"]
    }  # fmt: skip
    assert found.keys() == {published_name(name) for name in trained(model)}
    return found


def test_weights_are_known_by_the_names_of_the_checkpoint_and_factors_by_those_of_the_adapters_file(
    tmp_path: Path,
) -> None:
    assert all(published_name(name) == name for name in trained(empty()))
    model = attach(tiny_model(tiny_multimodal_config()), AdapterConfig(targets=list(TargetSet), rank=2, alpha=4))
    save_adapter(model, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS_FILE)
    assert {published_name(name) for name in trained(model)} == {name.removeprefix(PREFIX) for name in stored}


def test_the_first_group_that_matches_counts_and_the_rest_is_as_for_all() -> None:
    groups = [
        GroupConfig(match=r"layers\.[01]\..*q_proj", learning_rate=5e-3),
        GroupConfig(match=r"layers\.1\.", learning_rate_scale=0.5, weight_decay=0.3),
        GroupConfig(match="embed_tokens", weight_decay=0.2),
    ]
    for name, found in treatments(empty(), groups=groups, weight_decay=0.1, decay_vectors=True).items():
        if "layers.0." in name or "layers.1." in name:
            in_first, expected = "q_proj" in name, (0.5, 0.3) if "layers.1." in name else (1.0, 0.1)
            assert found == ((5.0, 0.1) if in_first else expected), name
        else:
            assert found == ((1.0, 0.2) if "embed_tokens" in name else (1.0, 0.1)), name


def test_vectors_do_not_decay_unless_they_are_to() -> None:
    dimensions = {name: parameter.ndim for name, parameter in empty().named_parameters()}
    assert {1, 2} <= set(dimensions.values())
    found = treatments(empty(), weight_decay=0.1)
    assert found == {name: (1.0, 0.1 if number > 1 else 0.0) for name, number in dimensions.items()}
    assert set(treatments(empty(), weight_decay=0.1, decay_vectors=True).values()) == {(1.0, 0.1)}
    wanted = treatments(empty(), weight_decay=0.1, groups=[GroupConfig(match="norm", weight_decay=0.3)])
    assert wanted["model.language_model.norm.weight"] == (1.0, 0.3)


def test_without_anything_of_their_own_all_parameters_are_one_group_in_the_models_order() -> None:
    model = adapted()
    (group,) = build_optimizer(model, OptimConfig(learning_rate=RATE)).param_groups
    assert group["param_names"] == list(trained(model))


def test_lora_plus_lets_the_factors_that_begin_at_zero_learn_faster_whatever_their_group() -> None:
    groups = [GroupConfig(match="q_proj", learning_rate_scale=0.5)]
    for name, (scale, _) in treatments(adapted(), lora_plus_ratio=16.0, groups=groups).items():
        assert scale == (16.0 if ".lora_B." in name else 1.0) * (0.5 if "q_proj" in name else 1.0)
    start = adapted()
    assert all(not p.any() for n, p in trained(start).items() if ".lora_B." in n)


def test_a_step_is_as_long_as_the_groups_scale_says() -> None:
    model = adapted()
    optimizer = build_optimizer(model, OptimConfig(learning_rate=1.0, lora_plus_ratio=8.0))
    before = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
    set_learning_rate(optimizer, RATE)
    give_gradients(trained(model), 0)
    optimizer.step()
    for name, parameter in trained(model).items():  # AdamW's first step is the learning rate, up or down
        length = RATE * (8 if ".lora_B." in name else 1)
        torch.testing.assert_close(
            (parameter - before[name]).abs(), torch.full_like(parameter, length), rtol=1e-3, atol=1e-6
        )


def test_groups_are_told_with_what_is_in_them() -> None:
    model = adapted()
    optimizer = build_optimizer(model, OptimConfig(learning_rate=RATE, lora_plus_ratio=16.0))
    halves = [sum(p.numel() for n, p in trained(model).items() if f".lora_{half}." in n) for half in "AB"]
    tensors = len(trained(model)) // 2
    assert describe_groups(optimizer) == [
        f"{tensors} tensors, {halves[0]:,} parameters: learning rate × 1, weight decay 0",
        f"{tensors} tensors, {halves[1]:,} parameters: learning rate × 16, weight decay 0",
    ]


def test_a_group_that_nothing_belongs_to_is_refused_before_there_are_weights() -> None:
    layer = GroupConfig(match=r"layers\.0\.", learning_rate_scale=2.0)
    nothing = GroupConfig(match=r"vision_tower\.", learning_rate_scale=2.0)
    with pytest.raises(ConfigError, match=r"'vision_tower.*matches nothing that is trained \(model\..* and \d+ more\)"):
        refuse_unusable(empty(), OptimConfig(learning_rate=RATE, groups=[layer, nothing]))
    late = GroupConfig(match=r"layers\.0\.mlp", learning_rate_scale=2.0)
    with pytest.raises(ConfigError, match=r"all that 'layers.*mlp' matches \(model.*\) belongs to earlier groups"):
        refuse_unusable(empty(), OptimConfig(learning_rate=RATE, groups=[layer, late]))
    refuse_unusable(empty(), OptimConfig(learning_rate=RATE, groups=[late, layer]))


def test_lora_plus_without_an_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora_plus_ratio is 16\.0, but no adapter of a linear layer is trained"):
        refuse_unusable(empty(), OptimConfig(learning_rate=RATE, lora_plus_ratio=16.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"match": "(", "learning_rate": 1.0}, r"'\(' is not a regular expression"),
        ({"match": "a"}, r"optim\.groups: 'a' changes nothing; give learning_rate"),
        ({"match": "a", "learning_rate": 1.0, "learning_rate_scale": 1.0}, "has both"),
        ({"match": "a", "learning_rate": 0.0}, r"'a': learning_rate is 0\.0"),
        ({"match": "a", "learning_rate_scale": float("inf")}, "'a': learning_rate_scale is inf"),
        ({"match": "a", "weight_decay": -1.0}, r"'a': weight_decay is -1\.0"),
    ],
)
def test_a_group_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GroupConfig(**values)
