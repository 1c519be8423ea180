# SPDX-License-Identifier: Apache-2.0
"""The loss is a sum over supervised tokens, whatever stands beside them, and however it is cut into chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.errors import ConfigError
from model.inputs import Inputs
from model.slicing.spec import SliceSpec
from tests.tiny import tiny_model
from tests.trainer.parts import tiny_trainer, trainer_config
from trainer.data.batch import IGNORED
from trainer.loss import CHUNK_BYTES, linear_cross_entropy_sum, token_scores
from trainer.step import SupervisedLoss

GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(2, 3, 5, generator=GENERATOR)
WEIGHT = torch.randn(7, 5, generator=GENERATOR)
LABELS = torch.tensor([[1, IGNORED, 3], [IGNORED, 6, 0]])
SOFTCAP = 2.0
CHUNKS = (1, 500, 10_000, CHUNK_BYTES)  # bytes: from a score at a time to all
FULL_VOCAB = 262_400


class Head(StrEnum):
    """Whether the head learns."""

    frozen = "frozen"
    trained = "trained"


@dataclass(frozen=True)
class Found:
    """A loss and its gradients."""

    loss: Tensor
    of_hidden: Tensor
    of_weight: Tensor | None


def expected(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float = SOFTCAP) -> Found:
    """The textbook's way, in float64."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    scores = softcap * torch.tanh(hidden @ weight.T / softcap)
    loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum")
    return Found(loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))


def found(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    head: Head,
    chunk_bytes: int = CHUNK_BYTES,
    softcap: float = SOFTCAP,
) -> Found:
    """Ours, with a head that is trained or frozen."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_(head is Head.trained)
    loss = linear_cross_entropy_sum(hidden, weight, labels, softcap=softcap, chunk_bytes=chunk_bytes)
    loss.backward()
    assert hidden.grad is not None
    return Found(loss.detach(), hidden.grad, weight.grad)


def gradient_of(tensor: Tensor) -> Tensor:
    """Which must be there."""
    assert tensor.grad is not None
    return tensor.grad


def assert_close(ours: Found, exact: Found, *, loss: float = 1e-6, gradient: float = 1e-5) -> None:
    """Within shares of the loss and of the largest entry of each gradient."""
    assert (ours.loss - exact.loss).abs() <= loss * exact.loss
    assert (ours.of_hidden - exact.of_hidden).abs().max() <= gradient * exact.of_hidden.abs().max()
    if ours.of_weight is not None:
        assert exact.of_weight is not None
        assert (ours.of_weight - exact.of_weight).abs().max() <= gradient * exact.of_weight.abs().max()


def batch_of(tokens: int, vocab: int, dim: int, *, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states with a head and labels."""
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(1, tokens, dim, generator=generator)
    weight = torch.randn(vocab, dim, generator=generator) * (spread / dim**0.5)
    return hidden, weight, torch.randint(0, vocab, (1, tokens), generator=generator)


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_chunks_of_any_size_give_the_loss_and_gradients_of_all_scores_at_a_time(head: Head, chunk_bytes: int) -> None:
    ours = found(HIDDEN, WEIGHT, LABELS, head=head, chunk_bytes=chunk_bytes)
    assert (ours.of_weight is not None) == (head is Head.trained)
    assert_close(ours, expected(HIDDEN, WEIGHT, LABELS))


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize("tokens", [1, 2, 31, 64, 127])
def test_any_number_of_tokens_is_right_also_if_the_last_chunk_is_shorter(tokens: int, head: Head) -> None:
    batch = batch_of(tokens, 1009, 16, spread=9.0)
    assert_close(found(*batch, head=head, chunk_bytes=300_000, softcap=30.0), expected(*batch, softcap=30.0))


@pytest.mark.parametrize("head", Head)
def test_the_published_vocabulary_is_within_rounding_of_float64(head: Head) -> None:
    batch = batch_of(7, FULL_VOCAB, 64, spread=12.0)
    ours = found(*batch, head=head, chunk_bytes=20_000_000, softcap=30.0)
    assert_close(ours, expected(*batch, softcap=30.0))


@pytest.mark.slow
@pytest.mark.parametrize("head", Head)
def test_many_tokens_of_the_published_vocabulary_are_within_rounding_of_float64(head: Head) -> None:
    batch = batch_of(257, FULL_VOCAB, 256, spread=12.0)
    assert_close(found(*batch, head=head, softcap=30.0), expected(*batch, softcap=30.0))


@pytest.mark.parametrize("chunk_bytes", [500, CHUNK_BYTES])
@pytest.mark.parametrize("softcap", [0.5, 30.0, 1000.0])
def test_any_soft_cap_is_right_however_large_the_scores(softcap: float, chunk_bytes: int) -> None:
    batch = batch_of(13, 201, 16, spread=200.0)  # exp(score) would overflow without being shifted
    ours = found(*batch, head=Head.trained, chunk_bytes=chunk_bytes, softcap=softcap)
    assert_close(ours, expected(*batch, softcap=softcap), gradient=1e-4)  # 1 - tanh² cancels where tanh is near 1


def test_a_confident_token_has_an_exact_gradient() -> None:
    hidden, weight = torch.ones(1, 1, 1), torch.tensor([[16.0], [0.0], [1.0]])
    exact = expected(hidden, weight, torch.zeros(1, 1, dtype=torch.long), softcap=30.0)
    ours = found(hidden, weight, torch.zeros(1, 1, dtype=torch.long), head=Head.frozen, softcap=30.0)
    torch.testing.assert_close(ours.of_hidden.double(), exact.of_hidden, rtol=1e-5, atol=0)  # of a millionth


@pytest.mark.parametrize("head", Head)
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_half_precision_rounds_scores_and_nothing_else(head: Head, chunk_bytes: int) -> None:
    hidden, weight, labels = batch_of(29, 501, 16, spread=9.0)
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    ours = found(hidden, weight, labels, head=head, chunk_bytes=chunk_bytes, softcap=30.0)
    scores = (torch.tanh(F.linear(hidden, weight) / 30.0) * 30.0).float()  # as Gemma3n.head
    loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(ours.loss, loss, rtol=1e-6, atol=0)
    assert ours.of_hidden.dtype == torch.bfloat16
    assert_close(ours, expected(hidden, weight, labels, softcap=30.0), loss=1e-2, gradient=2e-2)


def test_positions_without_a_label_get_no_gradient() -> None:
    ours = found(HIDDEN, WEIGHT, LABELS, head=Head.frozen)
    assert ((ours.of_hidden != 0).any(dim=-1) == (LABELS != IGNORED)).all()


def test_what_stands_at_positions_without_a_label_counts_for_nothing() -> None:
    spoilt = HIDDEN.masked_fill((LABELS == IGNORED)[..., None], torch.nan)
    ours, whole = found(spoilt, WEIGHT, LABELS, head=Head.trained), found(HIDDEN, WEIGHT, LABELS, head=Head.trained)
    assert ours.of_weight is not None
    assert whole.of_weight is not None
    assert torch.equal(ours.loss, whole.loss)
    assert torch.equal(ours.of_hidden, whole.of_hidden)
    assert torch.equal(ours.of_weight, whole.of_weight)


@pytest.mark.parametrize("shape", [(2, 3), (1, 0)])
def test_a_batch_without_labels_has_loss_zero_and_gradient_zero(shape: Sequence[int]) -> None:
    ours = found(torch.randn(*shape, 5), WEIGHT, torch.full(shape, IGNORED), head=Head.trained)
    assert ours.loss.item() == 0
    assert ours.of_weight is not None
    assert not ours.of_hidden.any()
    assert not ours.of_weight.any()


def test_a_loss_that_is_scaled_later_scales_the_gradients() -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    loss = linear_cross_entropy_sum(hidden, weight, LABELS, softcap=SOFTCAP)
    (loss * 0.25 + 3).backward()
    once = found(HIDDEN, WEIGHT, LABELS, head=Head.trained)
    assert once.of_weight is not None
    assert torch.equal(gradient_of(hidden), once.of_hidden * 0.25)  # a power of two: nothing is rounded
    assert torch.equal(gradient_of(weight), once.of_weight * 0.25)


def test_a_head_that_is_embedding_too_gets_both_gradients() -> None:
    weight, ids = WEIGHT.double().requires_grad_(), torch.tensor([[0, 2, 4], [1, 2, 3]])
    scores = SOFTCAP * torch.tanh(weight[ids] @ weight.T / SOFTCAP)
    (exact,) = torch.autograd.grad(F.cross_entropy(scores.flatten(0, 1), LABELS.flatten(), reduction="sum"), weight)
    tied = WEIGHT.clone().requires_grad_()
    linear_cross_entropy_sum(tied[ids], tied, LABELS, softcap=SOFTCAP, chunk_bytes=100).backward()
    torch.testing.assert_close(tied.grad, exact.float(), rtol=1e-5, atol=1e-6)


def test_without_gradients_the_loss_is_the_same_and_leads_nowhere() -> None:
    with torch.no_grad():
        loss = linear_cross_entropy_sum(HIDDEN.clone().requires_grad_(), WEIGHT, LABELS, softcap=SOFTCAP)
    assert not loss.requires_grad
    assert torch.equal(loss, found(HIDDEN, WEIGHT, LABELS, head=Head.frozen).loss)


def test_activation_checkpointing_around_the_loss_changes_no_gradient() -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    loss = checkpoint(
        lambda h, w: linear_cross_entropy_sum(h * 1, w, LABELS, softcap=SOFTCAP), hidden, weight, use_reentrant=False
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    plain = found(HIDDEN, WEIGHT, LABELS, head=Head.trained)
    assert torch.equal(gradient_of(hidden), plain.of_hidden)
    assert plain.of_weight is not None
    assert torch.equal(gradient_of(weight), plain.of_weight)


def test_second_derivatives_are_refused() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    loss = linear_cross_entropy_sum(hidden, WEIGHT, LABELS, softcap=SOFTCAP)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_going_back_twice_is_right_for_a_frozen_head_and_refused_for_a_trained_one() -> None:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    loss = linear_cross_entropy_sum(hidden, WEIGHT, LABELS, softcap=SOFTCAP)
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    loss = linear_cross_entropy_sum(hidden, weight, LABELS, softcap=SOFTCAP)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_scores_of_tokens_are_those_of_all_scores_at_a_time(chunk_bytes: int, dtype: torch.dtype) -> None:
    hidden, weight, labels = batch_of(47, 101, 4, spread=2.0)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    labels[0, ::2] = (hidden[0, ::2] @ weight.T).float().argmax(dim=1)  # some of them right
    labels[0, ::5] = IGNORED
    ours = token_scores(hidden, weight, labels, softcap=30.0, chunk_bytes=chunk_bytes)
    scores = (torch.tanh(F.linear(hidden, weight) / 30.0) * 30.0).float()[labels != IGNORED]
    exact = F.cross_entropy(scores, labels[labels != IGNORED], reduction="none")
    torch.testing.assert_close(ours.losses, exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.right, scores.argmax(dim=1) == labels[labels != IGNORED])
    assert ours.right.any()
    assert not ours.right.all()


def test_scores_of_no_tokens_are_none() -> None:
    ours = token_scores(HIDDEN, WEIGHT, torch.full_like(LABELS, IGNORED), softcap=SOFTCAP)
    assert ours.losses.shape == ours.right.shape == (0,)


def test_micro_batches_of_uneven_length_add_up_to_the_gradients_of_one_batch() -> None:
    model = tiny_model(spread=0.3)
    spec, generator = SliceSpec.full(model.config.text), torch.Generator().manual_seed(5)
    lengths, vocab = (3, 17, 8, 1), model.config.text.vocab_size
    ids = torch.randint(1, vocab, (4, 17), generator=generator)
    mask = torch.arange(17) < torch.tensor(lengths)[:, None]
    labels = torch.randint(0, vocab, (4, 17), generator=generator).masked_fill(~mask, IGNORED)
    ids = ids.masked_fill(~mask, model.config.text.pad_token_id)
    step = SupervisedLoss(model, chunk_bytes=7_000)

    def gradients(batches: Sequence[slice]) -> dict[str, Tensor]:
        model.zero_grad()
        for rows in batches:
            longest = max(lengths[rows])
            inputs = Inputs(ids=ids[rows, :longest], mask=mask[rows, :longest])
            (step(inputs, labels[rows, :longest], spec) / sum(lengths)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole, parts = gradients([slice(0, 4)]), gradients([slice(0, 1), slice(1, 3), slice(3, 4)])
    assert whole.keys() == parts.keys()
    difference = torch.stack([(parts[name] - gradient).norm() for name, gradient in whole.items()]).norm()
    assert difference <= 1e-6 * torch.stack([gradient.norm() for gradient in whole.values()]).norm()


def test_an_untrained_model_knows_as_much_as_a_die() -> None:
    loss = linear_cross_entropy_sum(HIDDEN, torch.zeros(7, 5), LABELS, softcap=SOFTCAP, chunk_bytes=100)
    assert loss.item() == pytest.approx(4 * math.log(7), rel=1e-6)


def test_a_run_takes_the_chunks_that_its_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: set[int] = set()

    def told(*arguments: Tensor, softcap: float, chunk_bytes: int) -> Tensor:
        taken.add(chunk_bytes)
        return linear_cross_entropy_sum(*arguments, softcap=softcap, chunk_bytes=chunk_bytes)

    monkeypatch.setattr("trainer.step.linear_cross_entropy_sum", told)
    tiny_trainer(trainer_config(tmp_path, max_steps=1, loss_chunk_bytes=12_345)).fit()
    assert taken == {12_345}
    with pytest.raises(ConfigError, match="loss_chunk_bytes is 0; it must be at least 1"):
        trainer_config(tmp_path, loss_chunk_bytes=0)
