# SPDX-License-Identifier: Apache-2.0
"""The training benchmark in small: both sides compute the same, and its count of operations is honest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.training import SCALES, benchmark
from tests.bench.training_report import report
from tests.parity.reference import reference_of
from tests.tiny import tiny_model

pytestmark = pytest.mark.parity


def test_the_full_scale_is_the_one_that_is_promised() -> None:
    scale, text = SCALES["full"], SCALES["full"].config.text
    assert (text.num_hidden_layers, text.hidden_size, set(text.intermediate_size)) == (10, 256, {2048})
    assert (text.vocab_size, text.vocab_size_per_layer_input) == (262_400, 262_144)
    assert (scale.rows, scale.tokens) == (2, 512)
    assert scale.flops == pytest.approx(350e9, rel=0.05)


def test_the_operations_of_a_step_are_those_that_are_counted_in_the_reference() -> None:
    scale = SCALES["small"]
    reference: Any = reference_of(tiny_model(scale.config, spread=0.1)).requires_grad_(False)
    ids = torch.randint(1, scale.config.text.vocab_size_per_layer_input, (scale.rows, scale.tokens))
    embedded = reference.get_input_embeddings()(ids).requires_grad_()  # for a gradient to flow to, as to an adapter
    with FlopCounterMode(display=False) as counter:
        per_layer = reference.model.get_per_layer_inputs(ids)
        reference(inputs_embeds=embedded, per_layer_inputs=per_layer, use_cache=False).logits.sum().backward()
    assert scale.flops == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.slow
def test_both_sides_train_the_same_numbers_of_the_same_model() -> None:
    figures = benchmark(SCALES["small"], rounds=2, threads=1)
    ours, theirs = figures.sides["ours"], figures.sides["theirs"]
    assert figures.loss_difference <= 1e-5
    assert ours.trained == theirs.trained
    assert len(ours.seconds) == len(theirs.seconds) == 2
    assert ours.peak_bytes > 100_000_000
    assert "aten::mm" in ours.profile
    page = report(figures, "a command", head_share=0.5)
    assert "{" not in page
    assert f"{figures.speed:.2f} × | at least 1.5 ×" in page
