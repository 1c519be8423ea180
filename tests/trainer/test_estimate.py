# SPDX-License-Identifier: Apache-2.0
"""A pretended run takes what a real one takes, part by part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from model.adapter.lora import AdapterConfig, attach, base_of
from model.config import LayerType
from model.errors import ConfigError
from model.inputs import Inputs
from model.layers.embedding import TablePlacement
from model.recompute import RecomputeConfig, TextRecompute
from tests import live_memory
from tests.live_memory import kept_and_peak
from tests.tiny import tiny_config, tiny_model
from trainer.average import AverageConfig
from trainer.config import Precision, TrainerConfig
from trainer.estimate import alternatives, estimate, savings
from trainer.ledger import Part
from trainer.loss import linear_cross_entropy_sum
from trainer.optimizers.config import OptimConfig, OptimizerName
from trainer.planned import Planned
from trainer.rehearsal import bytes_8bit, peak_of_run

pytestmark = pytest.mark.slow

CONFIG = tiny_config(
    layer_types=(LayerType.sliding_attention, LayerType.full_attention) * 2, intermediate_size=(96,) * 4,
    activation_sparsity_pattern=(0.9, 0.0, 0.0, 0.0), num_kv_shared_layers=2, hidden_size=64,
)  # fmt: skip
LORA = AdapterConfig(rank=4, alpha=8)
BATCH, WIDTH = 2, 96


def planned(
    adapter: AdapterConfig | None = LORA, optimizer: OptimizerName = OptimizerName.adamw, **trainer: Any
) -> Planned:
    """A run of the small model."""
    return Planned(
        config=CONFIG, adapter=adapter, optim=OptimConfig(name=optimizer, learning_rate=1e-4), width=WIDTH,
        trainer=TrainerConfig(output=Path("run"), batch_size=BATCH, max_steps=1, **trainer), document=WIDTH,
    )  # fmt: skip


def peak_of(run: Planned) -> Mapping[Part, int]:
    """What tensors alone take, whatever deals out memory."""
    return peak_of_run(run, on_processor=False)


def entries() -> int:
    """Of the model's parameters."""
    return sum(parameter.numel() for parameter in tiny_model(CONFIG).parameters())


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (LORA, TextRecompute.none),
        (None, TextRecompute.none),
        (LORA, TextRecompute.full),
        (None, TextRecompute.selective),
    ],
)
def test_a_pretended_step_keeps_what_a_real_one_keeps(
    adapter: AdapterConfig | None, text: TextRecompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_memory, "LOOKS_EVERY", 1)
    gemma = tiny_model(CONFIG).train()
    model = gemma if adapter is None else attach(gemma, adapter)
    gemma.recompute = RecomputeConfig(text=text)
    ids = torch.randint(1, CONFIG.text.vocab_size, (BATCH, WIDTH))
    softcap = CONFIG.text.final_logit_softcapping

    def loss() -> torch.Tensor:
        hidden, _ = base_of(model).hidden(Inputs.of(ids))
        return linear_cross_entropy_sum(hidden, gemma.head_weight, ids, softcap=softcap)

    _, peak = kept_and_peak(loss, *model.parameters())
    found = peak_of(planned(adapter, recompute=RecomputeConfig(text=text)))
    apart = (Part.weights, Part.trained, Part.states, Part.batch)
    made = sum(nbytes for part, nbytes in found.items() if part not in apart)
    assert made == pytest.approx(peak, rel=0.03)


def test_weights_gradients_and_states_are_counted_to_the_byte() -> None:
    found = peak_of(planned(None))
    assert found[Part.trained] == 4 * entries()
    steps = sum(1 for _ in tiny_model(CONFIG).parameters())
    assert found[Part.states] == 8 * entries() + 4 * steps
    halved = peak_of(planned(None, OptimizerName.adamw_bf16_states))
    assert halved[Part.states] == 4 * entries() + 4 * steps
    factored = peak_of(planned(None, OptimizerName.adafactor))
    assert factored[Part.states] < 0.2 * found[Part.states]
    eight_bits = peak_of(planned(None, OptimizerName.adamw_8bit))
    assert eight_bits[Part.states] == sum(bytes_8bit(own.numel()) for own in tiny_model(CONFIG).parameters())


def test_a_frozen_base_is_counted_in_its_precision_and_an_adapter_in_float32() -> None:
    trained = sum(own.numel() for own in attach(tiny_model(CONFIG), LORA).parameters() if own.requires_grad)
    found = peak_of(planned(precision=Precision.bf16))
    assert found[Part.trained] == 4 * trained
    assert 2 * entries() <= found[Part.weights] < 2.1 * entries()  # some stay float32
    averaged = peak_of(planned(precision=Precision.bf16, average=AverageConfig(decay=0.9)))
    assert averaged[Part.average] == 4 * trained


def test_a_table_off_the_device_leaves_a_gpu_and_stays_in_the_memory_of_a_processor() -> None:
    text = CONFIG.text
    table = 4 * text.vocab_size_per_layer_input * text.num_hidden_layers * text.hidden_size_per_layer_input
    there = peak_of(planned())
    aside = planned(per_layer_table=TablePlacement.host)
    assert there[Part.weights] - peak_of(aside)[Part.weights] == table
    assert estimate(aside, {}, on_cuda=False)[Part.table] == table
    assert Part.table not in estimate(aside, {}, on_cuda=True)
    assert Part.table not in estimate(planned(per_layer_table=TablePlacement.mmap), {}, on_cuda=False)


def test_documents_in_a_pack_are_counted_as_they_are_computed() -> None:
    whole = planned()
    packed = dataclasses.replace(whole, document=WIDTH // 5)  # the last one is shorter
    assert sum(peak_of(packed).values()) != sum(peak_of(whole).values())


@pytest.mark.slow
def test_what_another_setting_saves_is_the_difference_of_two_estimates() -> None:
    now = planned()
    found = estimate(now, {"program": 1000}, on_cuda=True)
    saved = savings(now, on_cuda=True)
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    full = estimate(planned(recompute=RecomputeConfig(text=TextRecompute.full)), {}, on_cuda=True)
    assert saved["trainer.recompute.text=full"] == sum(found.values()) - 1000 - sum(full.values()) > 0
    # Also beside an estimate of what a processor keeps, which leaves freed memory to this process.
    estimate(now, {}, on_cuda=False)
    assert savings(now, on_cuda=False)["trainer.recompute.text=full"] == saved["trainer.recompute.text=full"]
    assert "trainer.per_layer_table=mmap" in dict(alternatives(now))  # though rows of so small a table are as large
    assert not any("per_layer_table" in setting for setting in savings(planned(None), on_cuda=True))


def test_what_cannot_be_trained_is_not_estimated() -> None:
    with pytest.raises(ConfigError, match="rounds small updates away"):
        peak_of(planned(None, precision=Precision.bf16))
