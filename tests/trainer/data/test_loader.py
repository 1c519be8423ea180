# SPDX-License-Identifier: Apache-2.0
"""The order of the data depends on seed and epoch, not on who reads it or when."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.parts import rows, spelling
from trainer.data.batch import IGNORED
from trainer.data.collate import Collator
from trainer.data.loader import Loader

ROWS = rows(spelling(11))


def loader(*, batch_size: int, seed: int = 0, shuffle: bool = True) -> Loader:
    return Loader(ROWS, batch_size=batch_size, seed=seed, collator=Collator(0), shuffle=shuffle)


def places(loader: Loader, position: int, *, process: int = 0) -> list[str]:
    return [row.where for row in loader.take(position, process=process)]


@given(position=st.integers(0, 200), batch_size=st.integers(1, 15), seed=st.integers(0, 2**40))
def test_two_processes_take_together_what_one_takes_alone(position: int, batch_size: int, seed: int) -> None:
    two, one = loader(batch_size=batch_size, seed=seed), loader(batch_size=2 * batch_size, seed=seed)
    both = places(two, position) + places(two, position, process=1)
    assert both == places(one, position)


def test_an_epoch_takes_every_row_once_in_another_order_than_the_last() -> None:
    epochs = [places(loader(batch_size=11), 11 * epoch) for epoch in range(3)]
    assert [sorted(taken) for taken in epochs] == [sorted(row.where for row in ROWS)] * 3
    assert len(set(map(tuple, epochs))) == 3


def test_without_shuffling_rows_come_as_they_are() -> None:
    assert places(loader(batch_size=13, shuffle=False), 0) == [row.where for row in (*ROWS, *ROWS[:2])]


def test_a_micro_batch_may_reach_over_the_end_of_an_epoch() -> None:
    together = places(loader(batch_size=4), 9)
    assert together == places(loader(batch_size=2), 9) + places(loader(batch_size=2), 11)


def test_labels_are_the_next_tokens_where_the_assistant_wrote_them() -> None:
    row = ROWS[0]
    batch = Collator(0)([row])
    expected = torch.where(row.supervised, row.ids, IGNORED)[1:]
    assert batch.labels[0].tolist() == expected.tolist()
    assert batch.inputs.ids[0].tolist() == row.ids[:-1].tolist()


def test_rows_of_different_lengths_are_padded_on_the_right() -> None:
    short, long = sorted(ROWS, key=lambda row: len(row.ids))[:: len(ROWS) - 1]
    batch = Collator(0)([short, long])
    real = len(short.ids) - 1
    assert batch.inputs.mask.sum(dim=1).tolist() == [real, len(long.ids) - 1]
    assert not batch.inputs.ids[0, real:].any()
    assert (batch.labels[0, real:] == IGNORED).all()


def test_a_batch_counts_its_tokens() -> None:
    batch = Collator(0)(ROWS[:3])
    assert batch.supervised_tokens == sum(int(row.supervised.sum()) for row in ROWS[:3])
    assert batch.tokens == sum(len(row.ids) - 1 for row in ROWS[:3])
    assert batch.examples == 3
