# SPDX-License-Identifier: Apache-2.0
"""Activations made again change no gradient, not even its last bit: every policy, and the method we do not use.

The method that transformers can be told to use, reentrant checkpointing, is compared with its own gradients in the
same way and is found wrong, at the same loss: so this comparison can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.adapter.lora import AdapterConfig, attach, base_of
from model.adapter.targets import TargetSet
from model.recompute import RecomputeConfig, TextRecompute, TowerRecompute
from model.slicing.spec import SliceConfig, SliceSpec
from tests.daily import daily
from tests.live_memory import kept_and_peak
from tests.parity.reference import reference_of
from tests.tiny import TINY_TEXT, tiny_inputs, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs

pytestmark = pytest.mark.parity

CONFIG = tiny_multimodal_config()
SPECS = {
    "full": SliceSpec.full(TINY_TEXT),
    # Skipped layers part the readers from their producers' neighbours, and every width is another.
    "sub-model": SliceSpec.resolve(
        SliceConfig(name="sub-model", skip_layers=[3, 4, 5], ffn_widths=[48, 8, 24, 16, 40, 32]), TINY_TEXT
    ),
}
FULL, SELECTIVE, EVERY = TextRecompute.full, TextRecompute.selective, TextRecompute.every
POLICIES = {
    "text full": RecomputeConfig(text=FULL),
    "text every 2": RecomputeConfig(text=EVERY, every=2),
    "text every 4": RecomputeConfig(text=EVERY, every=4),
    "text every 100": RecomputeConfig(text=EVERY, every=100),
    "text selective": RecomputeConfig(text=SELECTIVE),
    "vision": RecomputeConfig(vision=TowerRecompute.full),
    "audio": RecomputeConfig(audio=TowerRecompute.full),
    "everything": RecomputeConfig.everything(),
    "selective and towers": RecomputeConfig(
        text=SELECTIVE, vision=TowerRecompute.full, audio=TowerRecompute.full
    ),
}  # fmt: skip
TARGETS = [TargetSet.all_linear, TargetSet.per_layer, TargetSet.vision, TargetSet.audio, TargetSet.embedders]
DROPOUT = 0.3  # an adapter's; the second time the same entries must be dropped


def gradients(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A result, and the gradient of every parameter that has one; the same entries are dropped every time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    result = forward()
    result.backward()
    return result.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Names of the gradients that are not the same to the last bit."""
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


@cache
def trained(kind: str) -> Any:
    """The tiny model with its towers, all of it trained, or an adapter everywhere."""
    model = tiny_model(CONFIG)
    if kind == "full":
        return model.train()
    adapted = attach(model, AdapterConfig(targets=TARGETS, rank=4, alpha=8, dropout=DROPOUT))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # half of an adapter is zero at first, and would hide the other half's errors
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted.train()


def ours(kind: str, spec: str, policy: RecomputeConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of our model under a policy."""
    model, gemma = trained(kind), base_of(trained(kind))
    inputs = tiny_multimodal_inputs(CONFIG, "text image text audio", "audio text image", frames=(33, 61))
    gemma.recompute = policy
    return gradients(model, lambda: gemma(inputs, SPECS[spec]).logits.square().mean())


@cache
def kept(kind: str, spec: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The same with all activations kept."""
    return ours(kind, spec, RecomputeConfig())


@pytest.mark.parametrize("spec", daily(SPECS, "sub-model"))
@pytest.mark.parametrize("kind", ["full", "adapter"])
@pytest.mark.parametrize("policy", daily(POLICIES, "text full", "text every 4", "text selective", "everything"))
def test_every_gradient_is_that_of_kept_activations_to_the_last_bit(policy: str, kind: str, spec: str) -> None:
    loss, expected = kept(kind, spec)
    again, found = ours(kind, spec, POLICIES[policy])
    assert torch.equal(loss, again)
    assert differing(found, expected) == []
    assert sum(bool(gradient.any()) for gradient in expected.values()) > 0.9 * len(expected)


def test_reentrant_checkpointing_of_the_reference_is_wrong_by_the_same_comparison() -> None:
    reference: Any = reference_of(tiny_model()).train()
    ids = tiny_inputs(CONFIG).ids

    def forward() -> Tensor:
        return reference(input_ids=ids, use_cache=False).logits.square().mean()

    def with_checkpoints(*, use_reentrant: bool) -> tuple[Tensor, dict[str, Tensor]]:
        reference.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        return gradients(reference, forward)

    loss, expected = gradients(reference, forward)
    loss_without_reentry, right = with_checkpoints(use_reentrant=False)
    assert torch.equal(loss, loss_without_reentry)
    assert differing(right, expected) == []

    loss_of_wrong, found = with_checkpoints(use_reentrant=True)
    assert torch.equal(loss, loss_of_wrong)  # nothing in the loss tells
    wrong = differing(found, expected)
    assert len(wrong) > len(expected) / 4
    producers = range(TINY_TEXT.first_shared_layer)
    assert {f"model.layers.{index}.self_attn.k_proj.weight" for index in producers} <= set(wrong)
    worst = max(((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in wrong)
    assert worst > 0.1


@cache
def bytes_under(policy: str | None) -> tuple[int, int]:
    """Bytes kept for the backward pass, and alive at most; None keeps all activations."""
    model = tiny_model()
    model.recompute = RecomputeConfig() if policy is None else POLICIES[policy]
    inputs = tiny_inputs(CONFIG, batch=2, seq=64)
    return kept_and_peak(lambda: model.hidden(inputs)[0].square().mean(), *model.parameters())


def test_the_more_is_made_again_the_less_is_kept() -> None:
    none, selective, full, every_2, every_4 = (
        bytes_under(policy)[0]
        for policy in (None, "text selective", "text full", "text every 2", "text every 4")
    )  # fmt: skip
    assert selective < 0.6 * none
    assert full < 0.5 * selective
    assert every_4 < every_2 < 0.8 * full


def test_making_activations_again_lowers_the_peak_of_forward_and_backward() -> None:
    none, selective, full = (bytes_under(policy)[1] for policy in (None, "text selective", "text full"))
    assert full < selective < none


@pytest.mark.parametrize("policy", POLICIES)
def test_without_gradients_every_policy_computes_the_same_and_keeps_nothing(policy: str) -> None:
    model = tiny_model()
    inputs = tiny_inputs(CONFIG)
    packed: list[Tensor] = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        expected = model(inputs).logits
        model.recompute = POLICIES[policy]
        assert torch.equal(model(inputs).logits, expected)
    assert packed == []
