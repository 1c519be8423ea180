# SPDX-License-Identifier: Apache-2.0
"""What a task is to whoever measures: items in a fixed order, asked of many sub-models at once, batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from model.errors import InputError
from model.processor.media import Picture, Recording
from model.slicing.spec import SliceSpec
from model.tower_config import Modality
from trainer.data.supervise import TokenRow
from trainer.evaluation.engine import Engine
from trainer.evaluation.metric import Metric, Values

DIGEST_LENGTH = 32  # of an item's hash: digits, enough for any number of items


@runtime_checkable
class Task(Protocol):
    """Items and what is found of them.

    Everything that can be wrong with its files is found when it is made, before a model is loaded.
    """

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Its figures, the main one first."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of its items as the model sees them, and of what is asked of them; not of where files are."""
        ...

    @property
    def digests(self) -> Sequence[str]:
        """A hash of each item's prompts as the model sees them, in the order of ``items``: wherever files are."""
        ...

    @property
    def modalities(self) -> frozenset[Modality]:
        """The towers that its items need."""
        ...

    @property
    def items(self) -> Sequence[str]:
        """The places of its items (``file:line``) in the order of measuring; no two are the same."""
        ...

    @property
    def batches(self) -> Sequence[range]:
        """Which items are measured together; every item is in one batch."""
        ...

    def measure(self, engine: Engine, specs: Sequence[SliceSpec], batch: range) -> list[list[Values]]:
        """Of each spec what is found of each item of one of ``batches``."""
        ...


def batches_of(weights: Sequence[int], most: int) -> tuple[range, ...]:
    """Items in their order, as many in a batch as weigh ``most`` together; one alone may weigh more."""
    starts, weight = [0], 0
    for index, own in enumerate(weights):
        if weight and weight + own > most:
            starts.append(index)
            weight = 0
        weight += own
    return tuple(range(start, end) for start, end in zip(starts, [*starts[1:], len(weights)], strict=True))


def told_apart(items: Sequence[str]) -> tuple[str, ...]:
    """The items, or InputError where two have one place: results are told apart by it.

    The pieces of a row that was cut say so themselves.
    """
    twice = [item for item, number in Counter(items).items() if number > 1]
    if twice:
        raise InputError(f"found '{twice[0]}' twice among the items; name each file once")
    return tuple(items)


def digests_of(items: Iterable[Iterable[TokenRow]]) -> tuple[str, ...]:
    """A hash of the rows of each item, their media by content."""
    known: dict[Picture | Recording, str] = {}
    found: list[str] = []
    for rows in items:
        digest = hashlib.sha256()
        for row in rows:
            for medium in row.media:
                if medium not in known:
                    known[medium] = medium.digest()
            media = " ".join(known[medium] for medium in row.media)
            digest.update(f"\n{len(row.ids)} {media} ".encode())  # with its length: two rows are not a longer one
            digest.update(row.ids.numpy().tobytes() + row.supervised.numpy().tobytes())
        found.append(digest.hexdigest()[:DIGEST_LENGTH])
    return tuple(found)


def fingerprint_of(settings: Mapping[str, Any], digests: Sequence[str]) -> str:
    """A hash of what is asked and of all items in order, by the hashes of ``digests_of``."""
    return hashlib.sha256(json.dumps([settings, *digests], sort_keys=True).encode()).hexdigest()


def modalities_of(rows: Iterable[TokenRow]) -> frozenset[Modality]:
    """The towers that rows need."""
    found: set[Modality] = set()
    for row in rows:
        found |= ({Modality.vision} if row.pictures else set()) | ({Modality.audio} if row.recordings else set())
    return frozenset(found)
