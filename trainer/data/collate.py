# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths side by side, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.inputs import Inputs
from trainer.data.batch import IGNORED, Batch
from trainer.data.supervise import TokenRow


def collate(rows: Sequence[TokenRow], *, pad_id: int) -> Batch:
    """One batch of ``rows``, as wide as the longest less one: the last token of a row is only ever a label."""
    width = max(len(row.ids) for row in rows) - 1
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for index, row in enumerate(rows):
        length = len(row.ids) - 1
        ids[index, :length] = row.ids[:-1]
        mask[index, :length] = True
        labels[index, :length] = row.ids[1:].masked_fill(~row.supervised[1:], IGNORED)
    return Batch(Inputs(ids=ids, mask=mask), labels, len(rows))
