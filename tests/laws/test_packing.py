# SPDX-License-Identifier: Apache-2.0
"""Rows that share a row of a batch are as they are alone: their losses, and what is learnt from them.

Of text and of media, through any sub-model, however attention is computed. Rows are longer than the window of the
local layers, some so long that these take them in blocks.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.gemma3n import Gemma3n
from model.inputs import Images, Inputs
from model.layers.kernel import WINDOWS_IN_ONE, AttentionKernel
from model.recompute import RecomputeConfig
from model.slicing.spec import SliceSpec
from tests.laws.drawn import specs
from tests.tiny import TINY_TEXT, TINY_VISION, tiny_config, tiny_model, tiny_multimodal_config
from tests.trainer.parts import SLICES, mixed, rows, spelling, tiny_media_processor
from trainer.data.batch import IGNORED, Batch
from trainer.data.collate import Collator
from trainer.data.pack import pack_rows
from trainer.data.supervise import TokenRow
from trainer.step import batch_loss_sum

TRAINED = (AttentionKernel.dense, AttentionKernel.documents)  # on a processor, flex has no gradients
FULL = SliceSpec.full(TINY_TEXT)
COLLATOR = Collator(0, tiny_media_processor())
PROMISED = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@cache
def drawn_rows() -> list[TokenRow]:
    """Text of all lengths, a token alone and many windows included; every token has a label."""
    generator = torch.Generator().manual_seed(5)
    window = TINY_TEXT.sliding_window
    lengths = (2, 9, window + 1, 3 * window, WINDOWS_IN_ONE * window + 12, 5, 40, 3, 17)
    ids = [torch.randint(6, 70, (length,), generator=generator) for length in lengths]
    return [
        TokenRow(each, torch.ones(len(each), dtype=torch.bool), where=f"drawn:{number}")
        for number, each in enumerate(ids)
    ]


@cache
def media_rows() -> list[TokenRow]:
    return rows([*mixed(7), *spelling(3)], tiny_media_processor())


def packed_order(given_rows: list[TokenRow], budget: int) -> list[list[TokenRow]]:
    packs = pack_rows(given_rows, budget=budget, seed=1, shuffle=True).packs
    assert len(packs) < len(given_rows)
    return [[given_rows[row] for row in pack] for pack in packs]


@torch.no_grad()
def losses(model: Gemma3n, batch: Batch, spec: SliceSpec = FULL) -> Tensor:
    """The loss of every token that has a label, row after row; in packs, document after document."""
    scores = model(batch.inputs, spec).logits
    found = F.cross_entropy(scores.flatten(0, 1), batch.labels.flatten(), reduction="none")
    return found[batch.labels.flatten() != IGNORED]


def gradients(model: Gemma3n, batch: Batch, spec: SliceSpec = FULL) -> dict[str, Tensor]:
    model.zero_grad()
    batch_loss_sum(model, batch, spec).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(model: Gemma3n, given_rows: list[TokenRow], budget: int, spec: SliceSpec = FULL) -> None:
    """The losses of every token and all gradients, of packs and of rows alone."""
    packs = packed_order(given_rows, budget)
    together, alone = COLLATOR.of_packs(packs), [COLLATOR([row]) for pack in packs for row in pack]
    model.attention = AttentionKernel.dense
    expected = torch.cat([losses(model, batch, spec) for batch in alone])
    for kernel in AttentionKernel:
        model.attention = kernel
        found = losses(model, together, spec)
        assert found.shape == expected.shape
        assert ((found - expected).abs() <= PROMISED * expected).all(), kernel
    for kernel in TRAINED:
        model.attention = kernel
        found = gradients(model, together, spec)
        expected_gradients = gradients(model, COLLATOR([row for pack in packs for row in pack]), spec)
        assert found.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            assert (found[name] - gradient).abs().max() <= PROMISED * gradient.abs().max(), (kernel, name)


@pytest.mark.parametrize("name", SLICES)
def test_packed_tokens_have_the_losses_and_gradients_of_rows_alone(name: str) -> None:
    spec = SliceSpec.resolve(SLICES[name], TINY_TEXT)
    assert_alike(tiny_model(spread=0.03), drawn_rows(), 60, spec)


def test_packed_media_have_the_losses_and_gradients_of_rows_alone() -> None:
    assert_alike(tiny_model(tiny_multimodal_config(), spread=0.03), media_rows(), 150)


@given(data=st.data(), budget=st.integers(60, 140))
@settings(max_examples=4, deadline=None)
def test_any_sub_model_has_the_losses_of_rows_alone(data: st.DataObject, budget: int) -> None:
    spec, given_rows = data.draw(specs(TINY_TEXT)), data.draw(st.permutations(drawn_rows()))
    model = tiny_model(spread=0.03)
    packs = packed_order(given_rows, budget)
    alone = torch.cat([losses(model, COLLATOR([row]), spec) for pack in packs for row in pack])
    assert ((losses(model, COLLATOR.of_packs(packs), spec) - alone).abs() <= PROMISED * alone).all()


def with_another_document(batch: Batch, row: int, document: int) -> tuple[Batch, Tensor]:
    """The batch with all the text of one document changed, and which tokens are that document's."""
    inputs = batch.inputs
    assert inputs.documents is not None
    its = inputs.documents == document
    its[torch.arange(len(its)) != row] = False
    text = its & (inputs.ids < 70) & (inputs.ids > 5)  # marks and placeholders of media stay
    ids = torch.where(text, (inputs.ids - 6 + 11) % 64 + 6, inputs.ids)
    assert bool((ids != inputs.ids)[its].any())
    return dataclasses.replace(batch, inputs=dataclasses.replace(inputs, ids=ids)), its


@pytest.mark.parametrize("kernel", AttentionKernel)
def test_another_document_changes_no_loss_at_all(kernel: AttentionKernel) -> None:
    for model, given_rows, budget in (
        (tiny_model(), drawn_rows(), 60), (tiny_model(tiny_multimodal_config()), media_rows(), 150),
    ):  # fmt: skip
        model.attention = kernel
        batch = COLLATOR.of_packs(packed_order(given_rows, budget))
        counted = batch.labels != IGNORED
        before = losses(model, batch)
        for row, document in ((0, 0), (0, 1), (1, 1)):
            changed, its = with_another_document(batch, row, document)
            after, others = losses(model, changed), ~its[counted]
            assert torch.equal(before[others], after[others])  # to the last bit
            assert not torch.equal(before[~others], after[~others])


def test_another_picture_changes_no_loss_of_another_document() -> None:
    model = tiny_model(tiny_multimodal_config())
    batch = COLLATOR.of_packs(packed_order(media_rows(), 150))
    before, counted = losses(model, batch), batch.labels != IGNORED
    inputs, documents = batch.inputs, batch.inputs.documents
    assert isinstance(inputs.images, Images)
    assert documents is not None
    pixels = inputs.images.pixels.clone()
    pixels[0] = 1 - pixels[0]
    changed = dataclasses.replace(inputs, images=Images(pixels=pixels))
    after = losses(model, dataclasses.replace(batch, inputs=changed))
    row, place = (inputs.ids == TINY_VISION.tokens.placeholder_id).nonzero()[0].tolist()
    its = documents == documents[row, place]
    its[torch.arange(len(its)) != row] = False
    others = ~its[counted]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


def test_what_padding_holds_and_how_much_there_is_changes_nothing() -> None:
    model = tiny_model()
    batch = COLLATOR.of_packs(packed_order(drawn_rows(), 60))
    inputs, documents, before = batch.inputs, batch.inputs.documents, losses(model, batch)
    assert documents is not None
    assert not bool(inputs.mask.all())
    other_ids = dataclasses.replace(inputs, ids=inputs.ids.masked_fill(~inputs.mask, 7))
    assert torch.equal(losses(model, dataclasses.replace(batch, inputs=other_ids)), before)
    more = (0, 13)
    wider = Inputs(
        ids=F.pad(inputs.ids, more), mask=F.pad(inputs.mask, more),
        documents=torch.cat((documents, documents[:, -1:].expand(-1, 13)), dim=1),
    )  # fmt: skip
    found = losses(model, Batch(wider, F.pad(batch.labels, more, value=IGNORED), batch.examples))
    assert ((found - before).abs() <= PROMISED * before).all()


def test_layers_made_again_give_packs_the_same_gradients_to_the_last_bit() -> None:
    model, batch = tiny_model(), COLLATOR.of_packs(packed_order(drawn_rows(), 60))
    kept = gradients(model, batch)
    model.recompute = RecomputeConfig.everything()
    again = gradients(model, batch)
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []


def test_the_losses_would_differ_if_documents_were_not_told_apart() -> None:
    model, batch = tiny_model(tiny_config()), COLLATOR.of_packs(packed_order(drawn_rows(), 60))
    as_one = dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, documents=None))
    assert (losses(model, as_one) - losses(model, batch)).abs().max() > 0.01
