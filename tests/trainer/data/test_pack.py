# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigError, InputError
from model.inputs import Audio, Images
from tests.trainer.parts import mixed, rows, spelling, tiny_media_processor
from trainer.data.batch import IGNORED
from trainer.data.collate import Collator
from trainer.data.config import DataConfig
from trainer.data.loader import Loader
from trainer.data.pack import Packs, pack, pack_rows
from trainer.data.supervise import TokenRow

BUDGET = 50
ROWS = rows(spelling(23))
PROCESSOR = tiny_media_processor()
MIXED = rows(mixed(10), PROCESSOR)

lengths_drawn = st.lists(st.integers(1, BUDGET), min_size=1, max_size=60)


@given(lengths=lengths_drawn, seed=st.integers(0, 3), shuffle=st.booleans())
def test_every_row_is_in_one_pack_and_no_pack_is_over_its_budget(
    lengths: list[int], seed: int, *, shuffle: bool
) -> None:
    found = pack(lengths, budget=BUDGET, seed=seed, shuffle=shuffle)
    assert sorted(row for one in found.packs for row in one) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in one) <= BUDGET for one in found.packs)
    assert found == pack(lengths, budget=BUDGET, seed=seed, shuffle=shuffle)
    assert found.share_filled == sum(lengths) / (BUDGET * len(found))


@given(lengths=lengths_drawn, seed=st.integers(0, 3))
def test_no_two_packs_fit_into_one(lengths: list[int], seed: int) -> None:
    sums = sorted(sum(lengths[row] for row in one) for one in pack(lengths, budget=BUDGET, seed=seed).packs)
    assert len(sums) < 2 or sums[0] + sums[1] > BUDGET


@given(lengths=lengths_drawn)
def test_rows_that_stay_in_order_are_packed_in_order(lengths: list[int]) -> None:
    found = pack(lengths, budget=BUDGET, seed=0, shuffle=False)
    assert [row for one in found.packs for row in one] == list(range(len(lengths)))
    for one, following in zip(found.packs, found.packs[1:], strict=False):
        assert sum(lengths[row] for row in one) + lengths[following[0]] > BUDGET


def test_which_of_many_alike_rows_go_together_depends_on_the_seed() -> None:
    one, same, other = (pack([7, 9] * 40, budget=BUDGET, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_hundred_thousand_rows_fill_their_packs() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(100_000, generator=generator).mul(0.8).add(5.5).exp().clamp(8, 2047).long().tolist()
    assert pack(lengths, budget=2048, seed=0).share_filled > 0.999
    assert pack(lengths, budget=2048, seed=0, shuffle=False).share_filled > 0.85


def test_a_row_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(InputError, match=r"row 1 has 51 tokens to put into packs of 50; raise data\.pack_tokens"):
        pack([3, BUDGET + 1], budget=BUDGET, seed=0)


def test_a_budget_too_small_for_the_rows_is_refused_as_a_setting() -> None:
    with pytest.raises(ConfigError, match=r"data\.pack_tokens is 100, too few for a row of data\.max_length_tokens"):
        DataConfig(train=["a.jsonl"], max_length_tokens=128, pack_tokens=100)
    assert DataConfig(train=["a.jsonl"], max_length_tokens=128).pack_budget == 128
    assert DataConfig(train=["a.jsonl"], max_length_tokens=128, pack_tokens=500).pack_budget == 500
    assert DataConfig(train=["a.jsonl"], pack_tokens=5000, packing=False).pack_budget is None


def loader(given_rows: Sequence[TokenRow] = ROWS, *, batch_size: int, shuffle: bool = True) -> Loader:
    return Loader(
        given_rows, batch_size=batch_size, seed=4, collator=Collator(0, PROCESSOR), shuffle=shuffle,
        packs=pack_rows(given_rows, budget=120, seed=4, shuffle=shuffle),
    )  # fmt: skip


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_row_once_and_another_one_in_another_order(*, shuffle: bool) -> None:
    packed = loader(batch_size=1, shuffle=shuffle)
    count = len(packed.packs)
    assert 1 < count < len(ROWS) / 2
    first, second = (
        [row.where for place in range(count) for row in packed.take(epoch * count + place)] for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == sorted(row.where for row in ROWS)
    assert (first == second) is not shuffle
    assert packed.epoch(3 * count) == 3.0


def test_two_processes_take_together_what_one_takes_alone() -> None:
    two, one = loader(batch_size=2), loader(batch_size=4)
    for position in range(0, 3 * len(one.packs), 4):
        shares = [row.where for process in (0, 1) for row in two.take(position, process=process)]
        assert shares == [row.where for row in one.take(position)]


def test_a_pack_is_its_rows_end_to_end_and_no_label_is_another_rows() -> None:
    packed = loader(batch_size=3)
    packs, batch = packed.take_packs(0), packed.batch(0)
    inputs = batch.inputs
    assert batch.examples == sum(map(len, packs)) > len(packs)
    assert inputs.documents is not None
    assert inputs.ids.shape[1] == max(sum(len(row.ids) - 1 for row in pack) for pack in packs)
    for index, rows_of_pack in enumerate(packs):
        parts = [packed.collator([row]) for row in rows_of_pack]
        end = sum(part.tokens for part in parts)
        assert torch.equal(inputs.ids[index, :end], torch.cat([part.inputs.ids[0] for part in parts]))
        assert torch.equal(batch.labels[index, :end], torch.cat([part.labels[0] for part in parts]))
        numbers = [number for number, part in enumerate(parts) for _ in range(part.tokens)]
        padding = inputs.ids.shape[1] - end
        assert inputs.documents[index].tolist() == numbers + [len(parts)] * padding  # which has a number of its own
        assert inputs.mask[index].tolist() == [True] * end + [False] * padding
        assert (batch.labels[index, end:] == IGNORED).all()


def test_media_stand_in_the_order_of_their_rows_and_no_run_is_cut() -> None:
    for place in range(3):
        packed = loader(MIXED, batch_size=2)
        batch, taken = packed.batch(2 * place), packed.take(2 * place)
        parts = [packed.collator([row]) for row in taken]
        assert batch.pictures == tuple(picture for row in taken for picture in row.pictures)
        assert batch.recordings == tuple(sound for row in taken for sound in row.recordings)
        pixels = [part.inputs.images.pixels for part in parts if isinstance(part.inputs.images, Images)]
        assert isinstance(batch.inputs.images, Images)
        assert torch.equal(batch.inputs.images.pixels, torch.cat(pixels))
        clips = [part.inputs.audio for part in parts if isinstance(part.inputs.audio, Audio)]
        if isinstance(batch.inputs.audio, Audio):
            frames = [clip[mask] for part in clips for clip, mask in zip(part.frames, part.mask, strict=True)]
            assert torch.equal(batch.inputs.audio.frames[batch.inputs.audio.mask], torch.cat(frames))


def test_rows_that_are_alone_make_the_batch_they_always_made() -> None:
    plain = Loader(ROWS, batch_size=3, seed=4, collator=Collator(0))
    batch, row_by_row = plain.batch(5), Collator(0)(plain.take(5))
    assert batch.inputs.documents is None
    assert torch.equal(batch.inputs.ids, row_by_row.inputs.ids)
    assert plain.packs == Packs([(row,) for row in range(len(ROWS))], num_tokens=0, budget=None)
    assert plain.packs.share_filled == 1.0
