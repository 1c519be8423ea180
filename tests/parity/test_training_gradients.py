# SPDX-License-Identifier: Apache-2.0
"""Gradients of what is trained, as training takes them, against transformers and PEFT on the same weights.

Full and LoRA, activations kept or computed again on either side, rows alone or several in one. Once in float32 at
the figure we promise, and once with both implementations computing in float64. That the comparison can fail is
shown by transformers' own reentrant checkpointing: its loss is right and its gradients are not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from model.adapter.lora import AdapterConfig, attach, save_adapter
from model.adapter.targets import TargetSet
from model.gemma3n import Gemma3n
from model.inputs import Inputs
from model.recompute import RecomputeConfig, TextRecompute
from model.slicing.spec import SliceSpec
from tests.daily import daily
from tests.parity.reference import reference_of, relative, widen_float32
from tests.releases import differs_before_oracle
from tests.tiny import first_unreadable_id, tiny_config, tiny_model
from trainer.data.batch import IGNORED, Batch
from trainer.step import SupervisedLoss, batch_loss_sum

pytestmark = pytest.mark.parity

Gradients = dict[str, Tensor]
CONFIG = tiny_config()
LENGTHS = (19, 9, 23, 5, 14, 2)  # of documents; several are longer than the window of 8
ROWS = ((0, 1, 3), (2, 4, 5))  # which of them share a row when they are packed
EXACT, PROMISED = 1e-10, 1e-5
EVERYTHING = [TargetSet.all_linear, TargetSet.per_layer]


def documents() -> list[tuple[Tensor, Tensor]]:
    """Token ids with their shifted labels; the first few of each have none, like a prompt."""
    generator = torch.Generator().manual_seed(6)
    found = []
    for length in LENGTHS:
        ids = torch.randint(1, first_unreadable_id(CONFIG), (length,), generator=generator)
        labels = torch.cat([ids[1:], torch.tensor([IGNORED])])
        labels[: min(3, length - 2)] = IGNORED
        found.append((ids, labels))
    return found


def padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def our_batch(*, packed: bool) -> Batch:
    """All documents in one batch: each in a row of its own, or several in a row."""
    found, rows = documents(), ROWS if packed else [(i,) for i in range(len(LENGTHS))]
    numbers = [torch.cat([torch.full((LENGTHS[i],), n) for n, i in enumerate(row)]) for row in rows]
    ids = padded([torch.cat([found[i][0] for i in row]) for row in rows], CONFIG.text.pad_token_id)
    mask = padded([torch.ones(len(row), dtype=torch.long) for row in numbers], 0).bool()
    # Padding belongs to the last document, so that numbers never fall.
    within = padded(numbers, len(LENGTHS)).cummax(dim=1).values if packed else None
    labels = padded([torch.cat([found[i][1] for i in row]) for row in rows], IGNORED)
    return Batch(Inputs(ids=ids, mask=mask, documents=within), labels, examples=len(LENGTHS))


def our_gradients(model: Any, batch: Batch, *, recompute: TextRecompute) -> tuple[Tensor, Gradients]:
    """Loss sum and gradients by the path that training takes."""
    gemma: Gemma3n = model if isinstance(model, Gemma3n) else model.get_base_model()
    gemma.recompute = RecomputeConfig.everything() if recompute else RecomputeConfig()
    if gemma.head_weight.dtype is torch.float64:  # the loss itself insists on float32; all before it is what is trained
        logits = model.train()(batch.inputs).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum", ignore_index=IGNORED)
    else:
        loss = SupervisedLoss(model.train())(batch.inputs, batch.labels, SliceSpec.full(gemma.config.text))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def their_gradients(reference: Any, *, reentrant: bool | None) -> tuple[Tensor, Gradients]:
    """The same of transformers, document by document (None: activations are kept)."""
    reference.train()
    if reentrant is not None:
        reference.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    total = torch.zeros(())
    for ids, labels in documents():
        logits = reference(input_ids=ids[None], use_cache=False).logits[0].float()
        loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
        loss.backward()
        total = total + loss.detach()
    return total, {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}


def differences(ours: Gradients, theirs: Gradients) -> dict[str, float]:
    """Of each tensor, relative to its largest entry; every tensor must be in both."""
    assert ours.keys() == theirs.keys()
    return {name: relative(ours[name], theirs[name]) for name in theirs}


def full(dtype: torch.dtype) -> Gemma3n:
    return tiny_model(CONFIG, spread=0.03, dtype=dtype)


def adapted(dtype: torch.dtype) -> PeftModel:
    """With factors none of which is zero."""
    found = attach(full(dtype), AdapterConfig(targets=EVERYTHING, rank=3, alpha=6))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.1 * noise / parameter[0].numel() ** 0.5)
    return found.to(dtype)


@cache
def reference_gradients(dtype: torch.dtype, *, lora: bool, reentrant: bool | None) -> tuple[Tensor, Gradients]:
    """Of transformers' model with our weights, and in it the adapter as PEFT reads it from the directory we save."""
    base = reference_of(full(dtype))
    if not lora:
        return their_gradients(base, reentrant=reentrant)
    with tempfile.TemporaryDirectory() as directory:
        save_adapter(adapted(dtype), f"{directory}/adapter")
        theirs = PeftModel.from_pretrained(base, f"{directory}/adapter", is_trainable=True).to(dtype)
    if reentrant:
        base.enable_input_require_grads()  # without it nothing at all would be learnt
    return their_gradients(theirs, reentrant=reentrant)


def compare(
    dtype: torch.dtype, *, lora: bool, packed: bool, recompute: TextRecompute, reentrant: bool | None = None
) -> tuple[float, dict[str, float]]:
    """Relative differences of the loss and of the gradient of every tensor that is trained."""
    model = adapted(dtype) if lora else full(dtype)
    loss, ours = our_gradients(model, our_batch(packed=packed), recompute=recompute)
    their_loss, theirs = reference_gradients(dtype, lora=lora, reentrant=reentrant)
    ours = {name.replace("model.language_model.", "model."): gradient for name, gradient in ours.items()}
    return relative(loss, their_loss), differences(ours, theirs)


# Activations kept by both; made again by both; made again by us alone, in every way there is.
ON_OFF = pytest.mark.parametrize(
    ("recompute", "reentrant"),
    daily(
        [(TextRecompute.full, False), *((policy, None) for policy in TextRecompute)],
        (TextRecompute.full, False),
        (TextRecompute.selective, None),
    ),
)
KIND = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])


@pytest.fixture
def _widened(monkeypatch: pytest.MonkeyPatch) -> None:
    widen_float32(monkeypatch)


@PACKED
@KIND
@ON_OFF
def test_all_gradients_equal_the_reference(
    *, lora: bool, packed: bool, recompute: TextRecompute, reentrant: bool | None
) -> None:
    loss, gradients = compare(torch.float32, lora=lora, packed=packed, recompute=recompute, reentrant=reentrant)
    assert loss <= 1e-6
    assert max(gradients.values()) <= PROMISED, max(gradients, key=lambda name: gradients[name])


@differs_before_oracle("computes parts of it in float32 whatever the weights are")
@pytest.mark.usefixtures("_widened")
@PACKED
@KIND
def test_in_float64_the_gradients_differ_in_the_last_digits(*, lora: bool, packed: bool) -> None:
    loss, gradients = compare(torch.float64, lora=lora, packed=packed, recompute=TextRecompute.full)
    assert loss <= EXACT
    assert max(gradients.values()) <= EXACT, max(gradients, key=lambda name: gradients[name])


def test_every_parameter_and_every_factor_is_compared() -> None:
    _, parameters = reference_gradients(torch.float32, lora=False, reentrant=None)
    assert parameters.keys() == {
        name.replace("model.language_model.", "model.") for name, _ in full(torch.float32).named_parameters()
    }
    _, factors = reference_gradients(torch.float32, lora=True, reentrant=None)
    layers, readers = CONFIG.text.num_hidden_layers, CONFIG.text.num_kv_shared_layers
    assert len(factors) == 2 * (layers * (7 + 2) - 2 * readers + 1)
    assert all(gradient.any() for gradient in (parameters | factors).values())


@KIND
def test_reentrant_checkpointing_in_the_reference_is_found_out(*, lora: bool) -> None:
    """Its loss is right; keys and values that several layers read get wrong gradients."""
    loss, gradients = compare(torch.float32, lora=lora, packed=False, recompute=TextRecompute.full, reentrant=True)
    assert loss <= 1e-6
    wrong = [name for name, difference in gradients.items() if difference > 1000 * PROMISED]
    assert any("k_proj" in name for name in wrong)
    assert any("v_proj" in name for name in wrong)


def test_measuring_a_batch_gives_the_loss_that_is_trained() -> None:
    model, batch = full(torch.float32), our_batch(packed=True)
    trained, _ = our_gradients(model, batch, recompute=TextRecompute.full)
    measured = batch_loss_sum(model, batch, SliceSpec.full(CONFIG.text)).detach()
    torch.testing.assert_close(measured, trained, rtol=1e-6, atol=0)
