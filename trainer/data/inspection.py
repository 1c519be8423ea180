# SPDX-License-Identifier: Apache-2.0
"""Every image and recording looked at before training: damage in a file then ends no run in its middle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import Progress

from model.errors import InputError
from model.processor.media import Picture, Recording
from trainer.data.config import CheckMedia, OnBadRow
from trainer.data.faults import MEND, MEND_OR_SKIP, Fault, in_lines, raise_faults
from trainer.data.supervise import TokenRow, TokenRows
from trainer.runtime import is_first_launched

Digests = dict[Picture | Recording, str]
AT_A_TIME = 1024  # media handed to the threads
MOST_THREADS = 8  # decoded images take up to 300 MB each
MANY = 10_000  # media, which take more than some seconds


def inspect(
    rows: Sequence[TokenRow],
    check: CheckMedia,
    *,
    console: Console,
    on_bad_row: OnBadRow | None = None,
    total: int | None = None,
) -> Digests:
    """The digests of all media of ``rows``, by medium; each is read once, and decoded if it is to be.

    Some milliseconds for each medium and core; ``console`` shows how far it is. Where bad rows are to be skipped, their
    media have no digest, and it says which they are; ``without_damage`` leaves the rows out.

    Args:
        rows: Rows with and without media.
        check: How closely media are looked at.
        console: Where to say things.
        on_bad_row: What becomes of rows with media that cannot be read; None where there is no choice.
        total: How many rows there are, if ``rows`` are not all of them.

    Raises:
        InputError: Some cannot be read or decoded, and are to be refused; the first of their rows are listed.
    """
    first_of = {medium: row for row in reversed(rows) for medium in row.media}
    media = list(first_of)[::-1]
    digests: Digests = {}
    wrong: dict[Picture | Recording, str] = {}
    for medium, found in zip(media, told(looked_at(media, check), len(media), console=console), strict=True):
        if isinstance(found, InputError):
            wrong[medium] = str(found)
        else:
            digests[medium] = found
    first = ((row, next((medium for medium in row.media if medium in wrong), None)) for row in rows)
    # A row that an epoch takes several times is wrong once.
    faults = list(
        dict.fromkeys(Fault(row.where, f"messages: {wrong[medium]}") for row, medium in first if medium is not None)
    )
    if on_bad_row is not OnBadRow.skip:
        raise_faults(
            faults, total=len(rows) if total is None else total, remedy=MEND if on_bad_row is None else MEND_OR_SKIP
        )
    elif faults and is_first_launched():
        console.print(f"data: leaves out {len(faults)} rows for their media", *in_lines(faults), sep="\n", markup=False)
    return digests


def without_damage(found: TokenRows, digests: Digests) -> TokenRows:
    """The rows all of whose media could be read.

    Raises:
        InputError: There is none.
    """
    if all(medium in digests for row in found.rows for medium in row.media):
        return found
    rows = [row for row in found.rows if all(medium in digests for medium in row.media)]
    if not rows:
        raise InputError(f"data: none of {len(found.rows)} rows is left, as all have damaged media; mend them")
    lost = len({row.where for row in found.rows} - {row.where for row in rows})
    return dataclasses.replace(found, rows=rows, examples=(), num_bad=found.num_bad + lost)


def looked_at(media: Sequence[Picture | Recording], check: CheckMedia) -> Iterable[str | InputError]:
    """The digest of each medium, or what is wrong with it; in order, made by threads."""

    def look(medium: Picture | Recording) -> str | InputError:
        try:
            digest = medium.digest()
            if check is CheckMedia.full:
                medium.decode()
        except InputError as error:
            return error
        return digest

    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as pool:
        for start in range(0, len(media), AT_A_TIME):
            yield from pool.map(look, media[start : start + AT_A_TIME])


def told(results: Iterable[str | InputError], total: int, *, console: Console) -> Iterable[str | InputError]:
    """``results`` as they come, counted on a terminal; elsewhere, if there are many, it is said that they are."""
    what = f"looking at {total:,} images and recordings"
    if not console.is_terminal:
        if total >= MANY and is_first_launched():
            console.print(f"{what}; data.check_media=head is faster")
        yield from results
        return
    with Progress(console=console, transient=True, disable=not is_first_launched()) as progress:
        yield from progress.track(results, total=total, description=what)
