# SPDX-License-Identifier: Apache-2.0
"""The loss is a sum over supervised tokens, whatever stands beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trainer.data.batch import IGNORED
from trainer.loss import token_loss_sum

LOGITS = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[1, IGNORED, 3], [IGNORED, 6, 0]])


def test_the_loss_is_the_sum_of_the_supervised_tokens_negative_log_probabilities() -> None:
    log_probabilities = F.log_softmax(LOGITS.double(), dim=-1)
    expected = -sum(log_probabilities[b, t, LABELS[b, t]] for b, t in ((0, 0), (0, 2), (1, 1), (1, 2)))
    torch.testing.assert_close(
        token_loss_sum(LOGITS, LABELS).double(), expected, rtol=1e-6, atol=0
    )  # fp32 against fp64


def test_positions_without_a_label_get_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    token_loss_sum(logits, LABELS).backward()
    assert logits.grad is not None
    assert ((logits.grad != 0).any(dim=-1) == (LABELS != IGNORED)).all()


def test_a_batch_without_labels_has_loss_zero_and_gradient_zero() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = token_loss_sum(logits, torch.full_like(LABELS, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_half_precision_scores_are_summed_in_float32() -> None:
    assert token_loss_sum(LOGITS.bfloat16(), LABELS).dtype == torch.float32
