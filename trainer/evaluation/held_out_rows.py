# SPDX-License-Identifier: Apache-2.0
"""How well each of several sub-models says what the assistant said, without the records of items that tasks keep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from model.slicing.spec import SliceSpec
from trainer.data.ahead import Ahead
from trainer.data.supervise import TokenRow
from trainer.evaluation.engine import Engine, RowScore
from trainer.evaluation.held_out import Score


def score_rows(
    engine: Engine, rows: Sequence[TokenRow], specs: Sequence[SliceSpec], *, batch_size: int, workers: int = 0
) -> Iterator[list[list[RowScore]]]:
    """The scores of ``rows``, batch by batch: of each spec those of the batch's rows.

    Rows are measured in the order and in the batches of a task of them (``held_out_task``), so what is found is the
    same to the last bit.

    Args:
        engine: The model.
        rows: Conversations as tokens.
        specs: The sub-models to measure.
        batch_size: Rows in a batch.
        workers: Threads that make batches ahead.

    Raises:
        InputError: A medium cannot be decoded.
    """
    by_length = sorted(rows, key=lambda row: len(row.ids))  # so that little is padding
    batches = Ahead(
        lambda start: engine.batch_of(by_length[start : start + batch_size]),
        stride=batch_size, end=len(by_length), workers=workers,
    )  # fmt: skip
    with contextlib.closing(batches):
        for start in range(0, len(by_length), batch_size):
            yield engine.score_batch(batches(start), specs)


def score_of(row: RowScore) -> Score:
    """One row's; added up row by row they are a task's figures (``Metric.of``) to the last bit."""
    return Score(
        loss_sum=row.loss_sum,
        supervised_tokens=row.tokens,
        exact=int(row.right == row.tokens),  # see ``held_out.score_batch``
        examples=1,
    )
