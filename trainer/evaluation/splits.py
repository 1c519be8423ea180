# SPDX-License-Identifier: Apache-2.0
"""A task in parts that have no row in common, so that what was chosen by one can be judged by another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from model.errors import ConfigError, InputError
from trainer.data.supervise import TokenRow
from trainer.evaluation.held_out_task import HeldOutTask
from trainer.evaluation.task import batches_of, digests_of, fingerprint_of, modalities_of

FRACTION = 1 << 64


def split(task: HeldOutTask, shares: Mapping[str, float], *, seed: int) -> dict[str, HeldOutTask]:
    """The task in parts, one of each name.

    A row's part is drawn by its content, that of a piece of a text by the content of the whole text: rows that are
    alike are in one part, so are all pieces of a text, and rows that are added or left out move no others.

    Args:
        task: Of rows.
        shares: About how large a share of the rows each part has, by its name; together 1.
        seed: Of the draws.

    Raises:
        ConfigError: Shares are no shares, or are not 1 together.
        InputError: A part has no row.
    """
    if not all(share > 0 for share in shares.values()) or not abs(sum(shares.values()) - 1) <= 1e-6:
        told = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ConfigError(f"shares of rows are {told}; each must be above 0, and together they must be 1")
    rows: dict[str, list[TokenRow]] = {name: [] for name in shares}
    for row in task.rows:
        rows[part_of(row, shares, seed)].append(row)
    found = len(set(map(origin_of, task.rows)))
    if empty := [name for name, own in rows.items() if not own]:
        raise InputError(
            f"of {len(task.rows)} rows none is drawn for the {empty[0]} split; give more rows, or a file for each split"
            + (f" ({found} conversations and texts; pieces of a text stay together)" if found < len(task.rows) else "")
        )
    size = max(map(len, task.batches))
    digests = {name: digests_of([row] for row in own) for name, own in rows.items()}
    return {
        name: replace(
            task, name=name, rows=own, items=tuple(row.where for row in own), batches=batches_of([1] * len(own), size),
            fingerprint=fingerprint_of({"kind": "held_out"}, digests[name]), digests=digests[name],
            modalities=modalities_of(own),
        )
        for name, own in rows.items()
    }  # fmt: skip


def part_of(row: TokenRow, shares: Mapping[str, float], seed: int) -> str:
    """The part that a row is in."""
    digest = hashlib.sha256(f"split {seed} ".encode() + origin_of(row)).digest()
    place = int.from_bytes(digest[:8], "big") / FRACTION
    names = list(shares)
    for name in names[:-1]:
        if (place := place - shares[name]) < 0:
            return name
    return names[-1]


def origin_of(row: TokenRow) -> bytes:
    """What is the same of rows that are alike, or are pieces of texts that are alike, and of no others."""
    return row.text_digest or digest_of(row)


def digest_of(row: TokenRow) -> bytes:
    """What is the same of rows that are alike, and of no others."""
    media = " ".join(medium.digest() for medium in row.media)
    return hashlib.sha256(media.encode() + b"\n" + row.ids.numpy().tobytes()).digest()
