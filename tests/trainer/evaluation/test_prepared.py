# SPDX-License-Identifier: Apache-2.0
"""What rows of a batch have in common is read, decoded and encoded once, and each is scored as if it stood alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.gemma3n import Towers
from model.inputs import Audio, Images, SoftTokens
from model.processor.chat import Message, Role
from model.processor.image import ImageProcessor
from model.processor.media import Picture, Recording
from model.slicing.spec import SliceSpec
from tests.tiny import tiny_model, tiny_multimodal_config
from tests.trainer.evaluation.asked import FULL, SPECS, engine
from tests.trainer.parts import picture_bytes, rows, sound_bytes, spelling, tiny_media_processor
from trainer.data.collate import Collator
from trainer.data.example import Example
from trainer.data.supervise import TokenRow
from trainer.soft_token_cache import SoftTokenCache
from trainer.soft_tokens import SharedTowers

BEFORE = rows(spelling(3))[2].ids
SHORT = SliceSpec("short", FULL.kept_layers[:-1], FULL.ffn_widths[:-1])  # ends where the reference goes on
PICTURE, OTHER = Picture(picture_bytes(3)), Picture(picture_bytes(9))
TONE = Recording(sound_bytes(300))
PROCESSOR = tiny_media_processor()


def choice(*last: int, scored: int = 1) -> TokenRow:
    """A common prompt and what follows it, of which the last tokens are scored."""
    ids = torch.cat((BEFORE, torch.tensor(last)))
    return TokenRow(ids, torch.arange(len(ids)) >= len(ids) - scored, "here:1")


LETTERS = [choice(5), choice(9, 7), choice(6), choice(7), choice(8, scored=3), *rows(spelling(2))]


def test_rows_that_are_read_alike_are_read_once_and_scored_as_alone() -> None:
    asked = engine(reference=FULL)
    assert asked.batch_of(LETTERS).batch.inputs.ids.shape[0] == 4
    wanted = [FULL, SPECS[-1], SHORT]
    together = asked.score(LETTERS, wanted)
    assert together == [asked.score(LETTERS, [spec])[0] for spec in wanted]
    for place, row in enumerate(LETTERS):
        for scores, (other,) in zip(together, asked.score([row], wanted), strict=True):
            one = scores[place]
            assert (one.tokens, one.right, one.agreeing) == (other.tokens, other.right, other.agreeing)
            assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)  # fp32 sums in another order
    assert [score.tokens for score in together[0][:5]] == [1, 1, 1, 1, 3]
    assert len({score.loss_sum for score in together[0]}) == len(LETTERS)


@torch.no_grad()
def test_what_is_scored_of_a_row_is_what_the_model_gives_behind_its_prompt() -> None:
    asked = engine()
    (scores,) = asked.score(LETTERS, [FULL])
    for row, score in zip(LETTERS, scores, strict=True):
        logits = asked.gemma(asked.collator([row]).inputs).logits[0].log_softmax(dim=-1)
        losses = -logits.gather(1, row.ids[1:, None])[:, 0]
        assert score.loss_sum == pytest.approx(float(losses[row.supervised[1:]].sum()), rel=1e-5)


def about(*contents: str | tuple[str | Picture | Recording, ...]) -> list[TokenRow]:
    """Answers of two letters to questions."""
    answers = ("ab", "ac", "ba", "ca")
    return rows([
        Example((Message(Role.user, content), Message(Role.assistant, answers[place % 4])), f"here:{place}")
        for place, content in enumerate(contents)
    ], PROCESSOR)  # fmt: skip


def test_rows_about_other_media_are_not_read_alike() -> None:
    asked = engine(PROCESSOR)
    same = about(("see", PICTURE))[0]
    other = TokenRow(same.ids, same.supervised, "here:2", (OTHER,))
    again = TokenRow(same.ids, same.supervised, "here:3", (Picture(picture_bytes(3)),))
    assert asked.batch_of([same, other, again]).batch.inputs.ids.shape[0] == 2
    one, two, three = asked.score([same, other, again], [FULL])[0]
    assert one == three
    assert one.loss_sum != two.loss_sum


@torch.no_grad()
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("prompts", [False, True])
def test_a_medium_of_several_rows_is_decoded_and_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cached: bool, prompts: bool
) -> None:
    media = about(("see", PICTURE), ("what?", PICTURE), (OTHER, TONE), (PICTURE, "hear", TONE))
    gemma = tiny_model(tiny_multimodal_config())
    cache = SoftTokenCache.of(tmp_path, gemma, PROCESSOR, torch.device("cpu")) if cached else None
    plain = Collator(0, PROCESSOR).prompts(media) if prompts else Collator(0, PROCESSOR)(media)
    expected = gemma.soft_tokens(plain.inputs)

    done: list[str] = []
    decode, see, hear, write = ImageProcessor.__call__, Towers.see, Towers.hear, SoftTokenCache.write

    def count_see(towers: Towers, images: Images) -> object:
        done.extend(["see"] * len(images))
        return see(towers, images)

    def count_hear(towers: Towers, audio: Audio) -> object:
        done.extend(["hear"] * len(audio))
        return hear(towers, audio)

    monkeypatch.setattr(ImageProcessor, "__call__", lambda *given: done.append("decode") or decode(*given))
    monkeypatch.setattr(Towers, "see", count_see)
    monkeypatch.setattr(Towers, "hear", count_hear)
    monkeypatch.setattr(SoftTokenCache, "write", lambda *given: done.append("write") or write(*given))
    collator = Collator(0, PROCESSOR, cache)
    batch = collator.prompts(media) if prompts else collator(media)
    found = SharedTowers(gemma, cache).encode(batch).inputs
    again = SharedTowers(gemma, cache).encode(collator(media)).inputs if cached else found
    for inputs in (found, again):
        for one, other in ((inputs.images, expected.images), (inputs.audio, expected.audio)):
            assert isinstance(one, SoftTokens)
            assert isinstance(other, SoftTokens)
            assert torch.equal(one.features, other.features)
            assert torch.equal(one.mask, other.mask)
    assert sorted(done) == ["decode"] * 2 + ["hear"] + ["see"] * 2 + ["write"] * 3 * cached
