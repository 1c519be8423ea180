# SPDX-License-Identifier: Apache-2.0
"""One optimizer step is the same however it is divided up, and nothing is changed by a gradient that is not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.adapter.lora import AdapterConfig
from model.errors import DivergenceError
from model.recompute import RecomputeConfig
from tests.trainer.parts import SLICES, elastic, losses, tiny_trainer, trainer_config
from trainer.config import Precision
from trainer.curve import CURVE_FILE
from trainer.elastic import ElasticConfig, ElasticPolicy
from trainer.loop import Trainer
from trainer.sinks import METRICS_FILE, read_records
from trainer.state import TrainState
from trainer.step import SupervisedLoss, batch_loss_sum
from trainer.summary import SUMMARY_FILE

# Sums of the same float32 terms in another order; the losses are near 4.
OTHER_ORDER = 1e-5


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The gradients of a trainer's first step, before clipping."""
    batches = trainer.gather(0)
    supervised_tokens = sum(batch.supervised_tokens for batch in batches)
    trainer.model.train()
    trainer.accumulate(
        SupervisedLoss(trainer.model), batches, trainer.sampler.at(0), supervised_tokens=supervised_tokens
    )
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_accumulating_micro_batches_gives_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    whole = gradients(tiny_trainer(trainer_config(tmp_path / "whole", batch_size=6)))
    parts = gradients(tiny_trainer(trainer_config(tmp_path / "parts", batch_size=1, gradient_accumulation=6)))
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        # Other shapes, other kernels: float32 rounding, grown by nine layers of large random weights. A mean of
        # means would be off by tenths.
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-4 * gradient.abs().max().item())


def test_accumulating_micro_batches_gives_the_losses_of_the_whole_batch(tmp_path: Path) -> None:
    tiny_trainer(trainer_config(tmp_path / "whole", batch_size=4, max_steps=3)).fit()
    tiny_trainer(trainer_config(tmp_path / "parts", batch_size=2, gradient_accumulation=2, max_steps=3)).fit()
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=OTHER_ORDER)


def test_the_gradient_of_a_sandwich_is_the_mean_of_its_specs_gradients(tmp_path: Path) -> None:
    trainer = tiny_trainer(trainer_config(tmp_path), elastic_config=elastic(ElasticPolicy.sandwich))
    found = {name: gradient.clone() for name, gradient in gradients(trainer).items()}
    trainer.optimizer.zero_grad()
    (batch,), specs = trainer.gather(0), trainer.sampler.at(0)
    mean = sum((batch_loss_sum(trainer.model, batch, spec) for spec in specs), torch.zeros(())) / len(specs)
    (mean / batch.supervised_tokens).backward()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None
        scale = max(parameter.grad.abs().max().item(), 1e-3)
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=OTHER_ORDER * scale)


def test_a_step_that_skips_layers_leaves_their_weights_alone(tmp_path: Path) -> None:
    only_short = ElasticConfig(policy=ElasticPolicy.sample, slices={"short": SLICES["short"]})
    trainer = tiny_trainer(trainer_config(tmp_path, max_steps=2), elastic_config=only_short)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert moved
    assert not [name for name in moved if any(f".layers.{layer}." in name for layer in (3, 4, 5))]


def test_training_lowers_the_loss_of_every_spec(tmp_path: Path) -> None:
    config = trainer_config(tmp_path, max_steps=14, batch_size=4, eval_every=7)
    tiny_trainer(config, elastic_config=elastic(ElasticPolicy.sandwich), num_validation=11).fit()
    found = [record for record in read_records(tmp_path / METRICS_FILE) if record["kind"] == "validation"]
    for name in SLICES:
        first, last = (record["loss"] for record in found if record["spec"] == name)
        assert last < first


def test_training_an_adapter_leaves_the_base_alone(tmp_path: Path) -> None:
    trainer = tiny_trainer(trainer_config(tmp_path), adapter=AdapterConfig(rank=2, alpha=4))
    frozen = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.fit()
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


def test_an_adapter_in_float32_learns_on_a_bfloat16_base(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        trainer_config(tmp_path, precision=Precision.bf16, max_steps=6), adapter=AdapterConfig(rank=2, alpha=4)
    )
    trainer.fit()
    dtypes = {(p.requires_grad, p.dtype) for p in trainer.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


def test_computing_activations_again_changes_no_loss(tmp_path: Path) -> None:
    for name, again in (("kept", RecomputeConfig()), ("again", RecomputeConfig.everything())):
        config = trainer_config(tmp_path / name, recompute=again, max_steps=3)
        tiny_trainer(config, elastic_config=elastic(ElasticPolicy.sandwich)).fit()
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_optimizer_is_touched(tmp_path: Path) -> None:
    trainer = tiny_trainer(trainer_config(tmp_path))
    name, parameter = next(iter(trainer.model.named_parameters()))
    before = {other: p.detach().clone() for other, p in trainer.model.named_parameters()}
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergenceError, match=rf"step 1: .*parameters: {name}\); .*as after step 0.*rows .*words:"):
        trainer.fit()
    assert all(torch.equal(p, before[other]) for other, p in trainer.model.named_parameters())
    assert not trainer.optimizer.state


def test_the_gradient_is_clipped_to_the_norm_allowed(tmp_path: Path) -> None:
    trainer = tiny_trainer(trainer_config(tmp_path, max_grad_norm=0.5))
    gradients(trainer)
    norm = trainer.clip(TrainState(), trainer.sampler.at(0), [1.0])
    clipped = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    assert norm > 0.5
    assert clipped.item() == pytest.approx(0.5, rel=1e-4)  # torch divides by norm + 1e-6


def test_what_is_logged_says_what_was_trained(tmp_path: Path) -> None:
    config = trainer_config(tmp_path, max_steps=4, log_every=2, save_every=3)
    state = tiny_trainer(config, elastic_config=elastic(ElasticPolicy.sandwich)).fit()
    records = list(read_records(tmp_path / METRICS_FILE))
    assert [record["step"] for record in records] == [2, 3, 4]  # a saved step is a logged one
    assert all(
        {"loss/full", "loss/short", "tokens_per_second", "memory_bytes", "eta_seconds"} <= r.keys() for r in records
    )
    assert records[-1]["eta_seconds"] == 0
    assert records[-1]["epoch"] == state.position / 11 == 8 / 11


def test_the_logged_loss_is_the_mean_over_the_tokens_of_the_steps_since_the_last_line(tmp_path: Path) -> None:
    tiny_trainer(trainer_config(tmp_path / "each", max_steps=2)).fit()
    trainer = tiny_trainer(trainer_config(tmp_path / "both", max_steps=2, log_every=2))
    counts = [sum(batch.supervised_tokens for batch in trainer.gather(position)) for position in (0, 2)]
    trainer.fit()
    expected = sum(loss * n for loss, n in zip(losses(tmp_path / "each"), counts, strict=True)) / sum(counts)
    assert losses(tmp_path / "both") == pytest.approx([expected], rel=1e-12)


@pytest.mark.usefixtures("pictured")
def test_a_finished_run_has_a_picture_of_its_losses(tmp_path: Path) -> None:
    tiny_trainer(trainer_config(tmp_path, max_steps=2), num_validation=3).fit()
    assert (tmp_path / CURVE_FILE).read_bytes().startswith(b"\x89PNG")


def test_what_was_not_trained_yet_is_measured_first_and_is_nothing_to_beat(tmp_path: Path) -> None:
    config = trainer_config(tmp_path / "run", max_steps=2, eval_before=True)
    trainer = tiny_trainer(config, num_validation=3)
    with torch.no_grad():
        expected = trainer.evaluate()[0].loss
    state = trainer.fit()
    measured = [record for record in read_records(tmp_path / "run" / METRICS_FILE) if record["kind"] == "validation"]
    assert [record["step"] for record in measured] == [0, 2]
    assert measured[0]["loss"] == expected
    assert state.best_step == 2
    summary = json.loads((tmp_path / "run" / SUMMARY_FILE).read_text(encoding="utf-8"))
    assert summary["sizes"]["full"]["before"]["loss"] == expected
    assert summary["sizes"]["full"]["after"]["loss"] == measured[1]["loss"]
    # A glance ahead of the first step changes nothing that follows.
    tiny_trainer(trainer_config(tmp_path / "blind", max_steps=2), num_validation=3).fit()
    assert losses(tmp_path / "blind") == losses(tmp_path / "run")
