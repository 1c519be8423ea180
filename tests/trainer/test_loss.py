# SPDX-License-Identifier: Apache-2.0
"""The loss is a sum over supervised tokens, whatever stands beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.batch import IGNORED
from trainer.loss import linear_cross_entropy_sum

GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(2, 3, 5, generator=GENERATOR)
WEIGHT = torch.randn(7, 5, generator=GENERATOR)
LABELS = torch.tensor([[1, IGNORED, 3], [IGNORED, 6, 0]])
SOFTCAP = 2.0


def expected(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    scores = SOFTCAP * torch.tanh(hidden @ weight.T / SOFTCAP)
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum")


def test_the_loss_is_the_sum_of_the_supervised_tokens_negative_log_probabilities() -> None:
    loss = linear_cross_entropy_sum(HIDDEN, WEIGHT, LABELS, softcap=SOFTCAP)
    exact = expected(HIDDEN.double(), WEIGHT.double(), LABELS)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


def test_positions_without_a_label_get_no_gradient() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    linear_cross_entropy_sum(hidden, WEIGHT, LABELS, softcap=SOFTCAP).backward()
    assert hidden.grad is not None
    assert ((hidden.grad != 0).any(dim=-1) == (LABELS != IGNORED)).all()


def test_a_batch_without_labels_has_loss_zero_and_gradient_zero() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    loss = linear_cross_entropy_sum(hidden, WEIGHT, torch.full_like(LABELS, IGNORED), softcap=SOFTCAP)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_half_precision_scores_are_summed_in_float32() -> None:
    loss = linear_cross_entropy_sum(HIDDEN.bfloat16(), WEIGHT.bfloat16(), LABELS, softcap=SOFTCAP)
    assert loss.dtype == torch.float32
