# SPDX-License-Identifier: Apache-2.0
"""What one model in memory finds of many sub-models is what each finds alone, to the bit, and what the scores say."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.generation.generate import complete, pad_left
from model.generation.sampling import SamplingConfig
from model.slicing.spec import SliceSpec
from tests.tiny import TINY_TEXT, tiny_model, tiny_multimodal_config
from tests.trainer.parts import SLICES, mixed, rows, spelling, tiny_media_processor, tiny_tokenizer
from trainer.data.collate import Collator
from trainer.data.supervise import TokenRow
from trainer.evaluation.consistency import divergences
from trainer.evaluation.engine import NUM_BINS, Engine
from trainer.evaluation.held_out import score_batch
from trainer.soft_tokens import SharedTowers

FULL = SliceSpec.full(TINY_TEXT)
SPECS = [SliceSpec.resolve(written, TINY_TEXT) for written in SLICES.values()]
# Ends where the full model, to which it is compared, goes on: it is found first.
ENDS_SOONER = SliceSpec("ends_sooner", FULL.kept_layers[:-1], FULL.ffn_widths[:-1])
ROWS = rows(spelling(5))


def text_engine(reference: SliceSpec | None = None, kept_bytes: int = 1 << 30) -> Engine:
    model = tiny_model()
    return Engine(
        model=model, tokenizer=tiny_tokenizer(), collator=Collator(0), towers=SharedTowers(model), reference=reference,
        kept_bytes=kept_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_sub_models_together_score_as_each_alone(kept_bytes: int) -> None:
    wanted = [*SPECS, ENDS_SOONER, SPECS[0]]
    together = text_engine(FULL, kept_bytes).score(ROWS, wanted)
    assert together == [text_engine(FULL).score(ROWS, [spec])[0] for spec in wanted]
    assert len({scores[0].loss_sum for scores in together}) == len(wanted) - 1


def test_rows_with_media_score_as_each_sub_model_alone() -> None:
    processor, model = tiny_media_processor(), tiny_model(tiny_multimodal_config())
    engine = Engine(
        model=model, tokenizer=processor.tokenizer, collator=Collator(processor.tokenizer.pad_id, processor),
        towers=SharedTowers(model),
    )  # fmt: skip
    full = SliceSpec.full(model.config.text)
    wanted = [full, SliceSpec.resolve(SLICES["short"], model.config.text)]
    media = rows(mixed(4), processor)
    assert engine.score(media, wanted) == [engine.score(media, [spec])[0] for spec in wanted]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_sums_over_rows_are_those_of_the_batch(spec: SliceSpec) -> None:
    engine = text_engine()
    (found,) = engine.score(ROWS, [spec])
    expected = score_batch(engine.model, engine.collator(ROWS), spec)
    assert sum(row.loss_sum for row in found) == pytest.approx(expected.loss_sum, rel=1e-6)
    assert sum(row.tokens for row in found) == expected.supervised_tokens
    assert sum(row.right == row.tokens for row in found) == expected.exact


def test_a_row_is_scored_alike_in_any_batch() -> None:
    engine = text_engine(FULL)
    together, alone = engine.score(ROWS, SPECS), [engine.score([row], SPECS) for row in ROWS]
    for index, scores in enumerate(together):
        for row, score in enumerate(scores):
            assert score.loss_sum == pytest.approx(alone[row][index][0].loss_sum, rel=1e-5)
            assert score.kl_sum == pytest.approx(alone[row][index][0].kl_sum, rel=1e-4, abs=1e-6)


def test_the_reference_agrees_with_itself() -> None:
    together = text_engine(FULL).score(ROWS, [FULL, *SPECS[1:]])
    assert all(score.agreeing == score.tokens and score.kl_sum == 0.0 for score in together[0])
    assert all(score.kl_sum is not None and score.kl_sum > 0 for scores in together[1:] for score in scores)


def test_divergence_and_calibration_are_those_of_the_scores() -> None:
    engine, spec = text_engine(FULL), SPECS[1]
    batch = engine.collator(ROWS)
    labelled = batch.labels >= 0
    with torch.no_grad():
        ours, theirs = (engine.gemma(batch.inputs, s).logits[labelled].double().log_softmax(-1) for s in (FULL, spec))
        hidden = [engine.gemma.hidden(batch.inputs, s)[0][labelled] for s in (FULL, spec)]
    expected = (ours.exp() * (ours - theirs)).sum(-1)
    whole = divergences(engine.gemma, *hidden)
    torch.testing.assert_close(whole.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(divergences(engine.gemma, *hidden, chunk_bytes=1), whole, rtol=1e-5, atol=1e-7)

    (found,) = engine.score(ROWS, [spec])
    sure, likeliest = theirs.exp().max(dim=-1)
    right = likeliest == batch.labels[labelled]
    tenth = (sure * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    for place in range(NUM_BINS):
        bins, inside = [row.bins[place] for row in found], tenth == place
        assert sum(b.tokens for b in bins) == int(inside.sum())
        assert sum(b.right for b in bins) == int(right[inside].sum())
        assert sum(b.confidence_sum for b in bins) == pytest.approx(float(sure[inside].sum()), rel=1e-5)
    agreeing = int((ours.argmax(-1) == likeliest).sum())
    assert sum(row.agreeing or 0 for row in found) == agreeing
    assert sum(len(row.bins) == NUM_BINS for row in found) == len(ROWS)


def test_what_is_generated_is_what_each_sub_model_would_say() -> None:
    engine, sampling = text_engine(), SamplingConfig(max_new_tokens=6)
    prompts = pad_left([row.ids[:4].tolist() for row in ROWS], 0)
    found = engine.generate(prompts, SPECS, sampling=sampling, stop_ids={1})
    for spec, texts in zip(SPECS, found, strict=True):
        expected = complete(tiny_model(), prompts, sampling=sampling, stop_ids={1}, spec=spec)
        assert texts == [engine.tokenizer.decode(ids) for ids in expected]
    some = complete(tiny_model(), prompts, sampling=sampling, stop_ids={1}, spec=SPECS[0])[0][0]
    unsaid = dataclasses.replace(engine, unsaid=[some])
    assert unsaid.generate(prompts, SPECS[:1], sampling=sampling, stop_ids={1})[0][0] != found[0][0]


def test_a_row_without_supervised_tokens_has_empty_sums() -> None:
    row = ROWS[0]
    blank = TokenRow(row.ids, torch.zeros_like(row.supervised), row.where)
    ((first, second),) = text_engine(FULL).score([blank, ROWS[1]], [FULL])
    assert (first.tokens, first.loss_sum, first.right, first.agreeing) == (0, 0.0, 0, 0)
    assert second.tokens > 0
