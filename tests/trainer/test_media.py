# SPDX-License-Identifier: Apache-2.0
"""Rows with and without media train together, and what frozen towers make of media is made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.errors import InputError
from model.freezing import Part
from model.gemma3n import Gemma3n
from model.inputs import Audio, Images, SoftTokens
from model.processor.media import Picture, Recording
from model.slicing.spec import SliceSpec
from tests.tiny import TINY_TEXT, tiny_model, tiny_multimodal_config
from tests.trainer.parts import (
    elastic,
    losses,
    media_trainer,
    mixed,
    picture_bytes,
    rows,
    spelling,
    tiny_media_processor,
    trainer_config,
)
from trainer.data.batch import Batch
from trainer.data.collate import Collator
from trainer.data.loader import Loader
from trainer.elastic import ElasticPolicy
from trainer.evaluation.held_out import Score, score_batches, total
from trainer.loop import Trainer
from trainer.sinks import METRICS_FILE, read_records
from trainer.soft_token_cache import SoftTokenCache
from trainer.soft_tokens import SharedTowers
from trainer.step import SupervisedLoss, batch_loss_sum

FULL = SliceSpec.full(TINY_TEXT)
TOWERS = (Part.vision, Part.audio)
CPU = torch.device("cpu")
PROCESSOR = tiny_media_processor()
ROWS = rows(mixed(10), PROCESSOR)


@contextmanager
def counted(*modules: nn.Module | None) -> Iterator[list[int]]:
    """How many items go through modules: one number per call."""
    calls: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
        for module in modules
        if module is not None
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def towers_of(trainer: Trainer) -> tuple[nn.Module | None, nn.Module | None]:
    """The towers of what is trained."""
    assert trainer.towers is not None
    return trainer.towers.gemma.model.vision_tower, trainer.towers.gemma.model.audio_tower


def gradients(model: Gemma3n, *batches: list[int]) -> dict[str, Tensor]:
    """The gradient of the summed loss of rows, taken batch by batch."""
    model.zero_grad()
    for batch in batches:
        batch_loss_sum(model, Collator(0, PROCESSOR)([ROWS[i] for i in batch]), FULL).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_gradient_of_a_mixed_batch_is_the_sum_of_its_rows_gradients() -> None:
    model = tiny_model(tiny_multimodal_config(), spread=0.3)
    together, alone = gradients(model, [0, 1, 2, 3, 4]), gradients(model, [0], [1], [2], [3], [4])
    assert together.keys() == alone.keys()
    assert any("vision_tower" in name for name in together)
    assert any("audio_tower" in name for name in together)
    for name, gradient in alone.items():
        # Other shapes, other kernels: float32 rounding, grown by nine layers. A row left out would be off by tenths.
        torch.testing.assert_close(together[name], gradient, rtol=0, atol=1e-3 * gradient.abs().max().item() + 1e-6)


def test_a_step_of_text_runs_no_tower_and_gives_it_no_gradient() -> None:
    model = tiny_model(tiny_multimodal_config())
    with counted(model.model.vision_tower, model.model.audio_tower) as calls:
        batch_loss_sum(model, Collator(0, PROCESSOR)(rows(spelling(3), PROCESSOR)), FULL).backward()
    assert not calls
    for part in (model.model.vision_tower, model.model.audio_tower, model.model.embed_vision, model.model.embed_audio):
        assert part is not None
        assert all(parameter.grad is None for parameter in part.parameters())


def test_frozen_towers_see_every_item_once_for_all_specs_of_a_step(tmp_path: Path) -> None:
    trainer = media_trainer(
        trainer_config(tmp_path, max_steps=1, batch_size=10), frozen=TOWERS,
        elastic_config=elastic(ElasticPolicy.sandwich),
    )  # fmt: skip
    batches, specs = trainer.gather(0), trainer.sampler.at(0)
    assert len(specs) > 1
    with counted(*towers_of(trainer)) as calls:
        trainer.accumulate(
            SupervisedLoss(trainer.model), batches, specs, supervised_tokens=batches[0].supervised_tokens
        )
    media = sum(len(row.media) for row in ROWS)
    assert calls == [1] * media


def test_sharing_soft_tokens_changes_no_gradient(tmp_path: Path) -> None:
    found = []
    for name in ("shared", "each"):
        trainer = media_trainer(
            trainer_config(tmp_path / name, max_steps=1, batch_size=10), frozen=TOWERS,
            elastic_config=elastic(ElasticPolicy.sandwich),
        )  # fmt: skip
        if name == "each":
            trainer.towers = None
        batches = trainer.gather(0)
        trainer.accumulate(SupervisedLoss(trainer.model), batches, trainer.sampler.at(0), supervised_tokens=9)
        found.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_a_trained_tower_runs_in_every_forward_pass(tmp_path: Path) -> None:
    trainer = media_trainer(
        trainer_config(tmp_path, max_steps=1, batch_size=10), frozen=[Part.audio],
        elastic_config=elastic(ElasticPolicy.sandwich),
    )  # fmt: skip
    specs, batches = trainer.sampler.at(0), trainer.gather(0)
    with counted(towers_of(trainer)[0]) as calls:
        trainer.accumulate(SupervisedLoss(trainer.model), batches, specs, supervised_tokens=9)
    assert calls == [sum(len(row.pictures) for row in ROWS)] * len(specs)


def test_a_step_without_media_leaves_towers_alone_where_nothing_else_is_trained(tmp_path: Path) -> None:
    trainer = media_trainer(
        trainer_config(tmp_path, max_steps=10, batch_size=1), frozen=[Part.text, Part.audio, Part.embedders]
    )
    pictured = [bool(row.pictures) for position in range(10) for row in trainer.loader.take(position)]
    assert {True, False} == set(pictured)
    trainer.fit()
    norms = [record["gradient_norm"] for record in read_records(tmp_path / METRICS_FILE) if record["kind"] == "train"]
    assert [norm > 0 for norm in norms] == pictured


def test_a_run_on_media_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = trainer_config(tmp_path / "whole", max_steps=4, batch_size=3, save_every=2)
    media_trainer(config).fit()
    for steps, resume in ((2, False), (4, True)):
        half = dataclasses.replace(config, output=tmp_path / "halves", max_steps=4, resume=resume)
        trainer = media_trainer(half, workers=2)
        if steps == 2:
            trainer.config = dataclasses.replace(half, max_steps=2)
        trainer.fit()
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")


def test_threads_that_read_ahead_change_no_loss(tmp_path: Path) -> None:
    for name, workers in (("none", 0), ("three", 3)):
        media_trainer(trainer_config(tmp_path / name, max_steps=3, batch_size=2), workers=workers).fit()
    assert losses(tmp_path / "three") == losses(tmp_path / "none")


def test_kept_soft_tokens_change_no_loss_and_no_score(tmp_path: Path) -> None:
    told = []
    for name, cache in (("without", None), ("first", tmp_path / "cache"), ("second", tmp_path / "cache")):
        config = trainer_config(tmp_path / name, max_steps=3, batch_size=4)  # over the end of the first epoch
        media_trainer(config, frozen=TOWERS, cache=cache, workers=1).fit()
        records = list(read_records(tmp_path / name / METRICS_FILE))
        told.append([(record["loss"], record.get("gradient_norm"), record.get("accuracy")) for record in records])
    assert told[0] == told[1] == told[2]


def test_kept_soft_tokens_spare_tower_and_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_multimodal_config())

    def run() -> Score:
        cache = SoftTokenCache.of(tmp_path, model, PROCESSOR, CPU)
        collator, towers = Collator(0, PROCESSOR, cache), SharedTowers(model, cache)
        batches = score_batches(model, ROWS, [FULL], collator=collator, batch_size=3, towers=towers)
        (score,) = total(batches, [FULL])
        return score

    towers = (model.model.vision_tower, model.model.audio_tower)
    with counted(*towers) as first:
        expected = run()
    for medium in (Picture, Recording):
        monkeypatch.delattr(medium, "decode")
    with counted(*towers) as second:
        assert run() == expected
    assert len(first) == sum(len(row.media) for row in ROWS)
    assert not second


def test_soft_tokens_that_are_missing_are_made_and_the_others_of_their_batch_are_not(tmp_path: Path) -> None:
    model = tiny_model(tiny_multimodal_config())
    cache = SoftTokenCache.of(tmp_path, model, PROCESSOR, CPU)
    collator, shared = Collator(0, PROCESSOR, cache), SharedTowers(model, cache)
    with torch.no_grad():
        expected = shared.encode(collator(ROWS)).inputs
        lost = [ROWS[2].pictures[1], ROWS[4].recordings[0]]
        for medium in lost:
            cache.path(medium).unlink()
        batch = collator(ROWS)
        assert isinstance(batch.inputs.images, Images)
        assert isinstance(batch.inputs.audio, Audio)
        assert (len(batch.inputs.images), len(batch.inputs.audio)) == (1, 1)
        with counted(model.model.vision_tower, model.model.audio_tower) as calls:
            found = shared.encode(batch.to(CPU)).inputs
    assert calls == [1, 1]
    for ours, theirs in ((found.images, expected.images), (found.audio, expected.audio)):
        assert isinstance(ours, SoftTokens)
        assert isinstance(theirs, SoftTokens)
        assert torch.equal(ours.mask, theirs.mask)
        assert torch.equal(ours.features, theirs.features)
    assert all(cache.path(medium).exists() for medium in lost)


def test_micro_batches_are_brought_to_the_device_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = media_trainer(trainer_config(tmp_path, max_steps=1, batch_size=2, gradient_accumulation=3), frozen=TOWERS)
    told: list[str] = []
    move, encode = Batch.to, SharedTowers.encode
    monkeypatch.setattr(Batch, "to", lambda batch, device: told.append("to") or move(batch, device))
    monkeypatch.setattr(SharedTowers, "encode", lambda towers, batch: told.append("encode") or encode(towers, batch))
    trainer.accumulate(SupervisedLoss(trainer.model), trainer.gather(0), trainer.sampler.at(0), supervised_tokens=9)
    assert told == ["to", "encode"] * 3


def test_a_medium_that_is_damaged_behind_its_header_is_named_with_its_row(tmp_path: Path) -> None:
    damaged = Picture(picture_bytes(1, side=60)[:-40])
    bad = [dataclasses.replace(ROWS[1], pictures=(damaged,), where="chat.jsonl:7")]
    with pytest.raises(InputError, match=r"chat\.jsonl:7: image of \d+ bytes: damaged or cut short"):
        Collator(0, PROCESSOR)(bad)
    trainer = media_trainer(trainer_config(tmp_path, max_steps=2), workers=2)
    trainer.loader = Loader(bad, batch_size=1, seed=0, collator=Collator(0, PROCESSOR))
    with pytest.raises(InputError, match=r"chat\.jsonl:7: "):
        trainer.fit()
