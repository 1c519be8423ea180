# SPDX-License-Identifier: Apache-2.0
"""Training on packs: what a step counts, and going on in the middle of an epoch as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.adapter.lora import AdapterConfig, base_of
from model.layers.kernel import AttentionKernel
from tests.trainer.parts import (
    Hook,
    elastic,
    losses,
    media_trainer,
    mixed,
    rows,
    spelling,
    tiny_trainer,
    trainer_config,
)
from trainer.data.loader import Loader
from trainer.data.pack import pack_rows
from trainer.elastic import ElasticPolicy
from trainer.loop import Trainer
from trainer.sinks import METRICS_FILE, read_records
from trainer.state import TrainState

STEPS = 5


def loader_of(trainer: Trainer) -> Loader:
    """What reads its rows: all are known."""
    assert isinstance(trainer.loader, Loader)
    return trainer.loader


def packed(trainer: Trainer, *, budget: int = 90) -> Trainer:
    """The same on packs of its rows."""
    old = loader_of(trainer)
    packs = pack_rows(old.rows, budget=budget, seed=old.seed, shuffle=old.shuffle)
    assert 1 < len(packs) < len(old.rows)
    trainer.loader = Loader(
        old.rows, batch_size=old.batch_size, seed=old.seed, collator=old.collator, shuffle=old.shuffle, packs=packs
    )
    return trainer


def text_trainer(output: Path, **changes: Any) -> Trainer:
    config = trainer_config(output, **{"max_steps": STEPS, "save_every": 1, "keep_checkpoints": STEPS} | changes)
    return packed(tiny_trainer(
        config, adapter=AdapterConfig(rank=4, alpha=8, dropout=0.1), elastic_config=elastic(ElasticPolicy.sandwich)
    ))  # fmt: skip


def adapter_bytes(output: Path) -> bytes:
    return (output / "weights" / "adapter_model.safetensors").read_bytes()


class StoppedError(Exception):
    """What a run is stopped by."""


def stop_at(trainer: Trainer, step: int) -> None:
    """Let the run end with an exception when it has logged a step, and not yet saved it."""

    def stop() -> None:
        raise StoppedError

    trainer.sinks = [*trainer.sinks, Hook(step, stop)]
    with pytest.raises(StoppedError):
        trainer.fit()


@pytest.mark.parametrize("accumulation", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_packed_run_goes_on_in_the_middle_of_an_epoch_bit_for_bit(tmp_path: Path, accumulation: int) -> None:
    wishes = {"gradient_accumulation": accumulation, "batch_size": 1}
    straight = text_trainer(tmp_path / "straight", **wishes)
    per_epoch = len(loader_of(straight).packs) / accumulation
    assert per_epoch != round(per_epoch) or accumulation == 1  # some step reaches over the end of an epoch
    straight.fit()
    for step in (2, 5):
        output = tmp_path / f"stopped_{step}"
        stop_at(text_trainer(output, **wishes), step)
        text_trainer(output, **wishes, resume=True).fit()
        assert losses(output) == losses(tmp_path / "straight")
        assert adapter_bytes(output) == adapter_bytes(tmp_path / "straight")


def test_a_packed_run_with_media_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trainer(name: str, **changes: Any) -> Trainer:
        config = trainer_config(tmp_path / name, **{"max_steps": 3, "save_every": 1, "batch_size": 1} | changes)
        torch.manual_seed(0)  # the adapter is drawn before the run begins
        return packed(media_trainer(config, adapter=AdapterConfig(rank=2, alpha=4), workers=2), budget=150)

    trainer("straight").fit()
    stop_at(trainer("stopped"), 3)
    trainer("stopped", resume=True).fit()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert adapter_bytes(tmp_path / "stopped") == adapter_bytes(tmp_path / "straight")


def test_a_step_on_packs_is_a_step_on_the_same_rows_alone(tmp_path: Path) -> None:
    given_rows = rows(spelling(11))

    def one_step(name: str, *, packs: bool) -> tuple[dict[str, Any], Trainer, TrainState]:
        trainer = tiny_trainer(trainer_config(tmp_path / name, max_steps=1, batch_size=1 if packs else len(given_rows)))
        budget = 10_000 if packs else None
        trainer.loader = Loader(
            given_rows, batch_size=trainer.loader.batch_size, seed=0, collator=trainer.loader.collator, shuffle=False,
            packs=pack_rows(given_rows, budget=budget, seed=0, shuffle=False),
        )  # fmt: skip
        assert len(trainer.loader.packs) == (1 if packs else len(given_rows))
        state = trainer.fit()
        (record,) = (r for r in read_records(tmp_path / name / METRICS_FILE) if r["kind"] == "train")
        return record, trainer, state

    (together, packed_run, counts), (alone, plain, plain_counts) = (
        one_step("packed", packs=True),
        one_step("alone", packs=False),
    )
    assert (counts.tokens, counts.supervised_tokens) == (plain_counts.tokens, plain_counts.supervised_tokens)
    assert (counts.position, plain_counts.position) == (1, len(given_rows))
    assert together["epoch"] == alone["epoch"] == 1.0
    for key in ("loss", "gradient_norm"):
        assert together[key] == pytest.approx(alone[key], rel=1e-4)  # of weights that enlarge rounding errors
    moved = dict(plain.model.named_parameters())
    for name, parameter in packed_run.model.named_parameters():
        torch.testing.assert_close(parameter, moved[name], rtol=0, atol=3e-3, msg=name)


def test_what_computes_attention_changes_a_run_by_rounding_alone(tmp_path: Path) -> None:
    runs = {}
    for kernel in (AttentionKernel.dense, AttentionKernel.documents, AttentionKernel.auto):
        trainer = packed(tiny_trainer(trainer_config(tmp_path / kernel, max_steps=3, batch_size=1)))
        base_of(trainer.model).attention = kernel
        trainer.fit()
        runs[kernel.value] = losses(tmp_path / kernel)
    assert runs["auto"] == runs["documents"]
    assert runs["dense"] == pytest.approx(runs["documents"], rel=1e-3)


def test_rows_with_media_are_packed_with_others(tmp_path: Path) -> None:
    trainer = packed(media_trainer(trainer_config(tmp_path / "run", batch_size=1)), budget=150)
    taken = [trainer.loader.take(place) for place in range(len(loader_of(trainer).packs))]
    assert sorted(row.where for pack in taken for row in pack) == sorted(example.where for example in mixed(10))
    assert any(row.media for pack in taken if len(pack) > 1 for row in pack)
