# SPDX-License-Identifier: Apache-2.0
"""What one model in memory finds of many sub-models is what each finds alone, to the bit, and what the scores say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from model.adapter.lora import AdapterConfig, PeftModel, attach, base_of
from model.errors import InputError
from model.gemma3n import Gemma3n
from model.generation.generate import complete, pad_left
from model.generation.sampling import SamplingConfig
from model.slicing.spec import SliceSpec
from model.text.decoder import Decoder
from tests.tiny import TINY_TEXT, tiny_model, tiny_multimodal_config, tiny_multimodal_inputs
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
    engine, wanted = media_engine(tiny_model(tiny_multimodal_config())), [FULL, SPECS[1]]
    media = rows(mixed(4), tiny_media_processor())
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


def adapted() -> PeftModel:
    """A model with towers whose adapter has its say."""
    model = attach(tiny_model(tiny_multimodal_config()), AdapterConfig(rank=4, alpha=8)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    return model


def media_engine(model: Gemma3n | PeftModel, **changes: Any) -> Engine:
    processor = tiny_media_processor()
    return Engine(
        model=model, tokenizer=processor.tokenizer, collator=Collator(processor.tokenizer.pad_id, processor),
        towers=SharedTowers(base_of(model)), **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "temperature", "kept_bytes"),
    [("text", 0.0, 0), ("text", 1.0, 1 << 30), ("media", 0.0, 1 << 30), ("adapter", 1.0, 0)],
)
def test_what_is_generated_is_what_each_sub_model_would_say(kind: str, temperature: float, kept_bytes: int) -> None:
    model = {"text": tiny_model, "media": lambda: tiny_model(tiny_multimodal_config()), "adapter": adapted}[kind]()
    engine = text_engine(kept_bytes=kept_bytes) if kind == "text" else media_engine(model, kept_bytes=kept_bytes)
    sampling = SamplingConfig(max_new_tokens=5, temperature=temperature, seed=3)
    prompts = pad_left([row.ids[: 4 + 7 * place].tolist() for place, row in enumerate(ROWS)], 0)  # past the window
    if kind != "text":
        prompts = tiny_multimodal_inputs(base_of(model).config, "text image text audio text", "audio text")
    wanted = [*SPECS, ENDS_SOONER, SPECS[0]]
    found = engine.generate(prompts, wanted, sampling=sampling, stop_ids={1})
    for spec, texts in zip(wanted, found, strict=True):
        expected = complete(model, prompts, sampling=sampling, stop_ids={1}, spec=spec)
        assert texts == [engine.tokenizer.decode(ids) for ids in expected]


def test_what_is_not_to_be_said_is_not() -> None:
    engine, asked = text_engine(), {"sampling": SamplingConfig(max_new_tokens=6), "stop_ids": {1}}
    prompts = pad_left([row.ids[:4].tolist() for row in ROWS], 0)
    some = complete(tiny_model(), prompts, spec=SPECS[0], **asked)[0][0]
    unsaid = dataclasses.replace(engine, unsaid=[some])
    assert unsaid.generate(prompts, SPECS[:1], **asked)[0][0] != engine.generate(prompts, SPECS[:1], **asked)[0][0]


def test_prompts_are_read_by_layers_that_sub_models_begin_with_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, counted, run = text_engine(), [], Decoder.run_layers
    late = [SliceSpec(f"late_{width}", FULL.kept_layers, (*FULL.ffn_widths[:-1], width)) for width in (8, 16)]
    monkeypatch.setattr(Decoder, "run_layers", lambda self, group, *rest: counted.append(len(group)) or run(
        self, group, *rest))  # fmt: skip
    prompts = pad_left([[5, 17, 40]], 0)
    engine.generate(prompts, [FULL, *late], sampling=SamplingConfig(max_new_tokens=1), stop_ids=())
    assert sum(counted) == 8 + 3


def test_prompts_that_cannot_be_gone_on_with_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "forward_each", lambda *_args, **_options: pytest.fail("read"))
    with pytest.raises(InputError, match="the model has 512 positions"):
        text_engine().generate(pad_left([[5]], 0), SPECS, sampling=SamplingConfig(max_new_tokens=512), stop_ids=())


def test_a_row_without_supervised_tokens_has_empty_sums() -> None:
    row = ROWS[0]
    blank = TokenRow(row.ids, torch.zeros_like(row.supervised), row.where)
    ((first, second),) = text_engine(FULL).score([blank, ROWS[1]], [FULL])
    assert (first.tokens, first.loss_sum, first.right, first.agreeing) == (0, 0.0, 0, 0)
    assert second.tokens > 0
