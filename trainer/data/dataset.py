# SPDX-License-Identifier: Apache-2.0
"""From what a user says about data to rows to learn from and rows to be measured on."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.processor.processor import Processor
from trainer.data.config import DataConfig
from trainer.data.example import Example
from trainer.data.faults import MEND_OR_SKIP
from trainer.data.finding import find
from trainer.data.mixture import Picked, held_out, times
from trainer.data.sources import Source, fingerprint, sources_of
from trainer.data.supervise import TRAINING_REMEDY, Limits, Maker, TokenRow, TokenRows, token_rows
from trainer.data.token_cache import SourceRows, TokenCache, about_rows
from trainer.runtime import is_first_launched


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a recipe tells its user about rows.

    Args:
        long: What to do about one that is refused for its length.
        bad: What to do about those that cannot be used.
        cache: What the recipe calls the directory of kept rows.
    """

    long: str = TRAINING_REMEDY
    bad: str = MEND_OR_SKIP
    cache: str = "data.token_cache"


OF_TRAINING = Told()


def read_rows(data: DataConfig, processor: Processor, *, seed: int) -> tuple[TokenRows, TokenRows | None]:
    """What is learnt from, as often as an epoch has it, and what is measured on, if anything.

    Args:
        data: What the user says.
        processor: That of the model.
        seed: Draws shares of sources.

    Raises:
        MatsliceError: A source is missing or cannot be read, or rows cannot be used and are to be refused.
    """
    given = sources_of(data)
    all_rows = rows_of(given, data, processor)
    found = all_rows.found
    out = [False] * len(found.rows) if data.held_out is None else held_out(all_rows.digests, data.held_out)
    order: list[int] = []
    for source, places in zip(given, all_rows.places, strict=True):
        own = [place for place in places if not out[place]]
        order += [own[index] for index in times(len(own), source.weight, seed=seed, name=source.name)]
    train = found
    if order != list(range(len(found.rows))):
        train = dataclasses.replace(found, rows=Picked(found.rows, order))
    most = data.max_validation_examples
    if data.held_out is not None:
        rows = Picked(found.rows, [place for place, is_out in enumerate(out) if is_out][:most])
        return train, TokenRows(rows, (), 0)
    return train, validation_rows(data, processor)


def validation_rows(data: DataConfig, processor: Processor) -> TokenRows | None:
    """The rows of ``data.validation``; None where nothing is named there. Raises as ``read_rows``."""
    if not data.validation:
        return None
    measured = [Source(path, data.format, data.columns) for path in data.validation]
    found = rows_of(measured, data, processor).found
    return dataclasses.replace(found, rows=found.rows[: data.max_validation_examples])


def rows_of(sources: Sequence[Source], data: DataConfig, processor: Processor, told: Told = OF_TRAINING) -> SourceRows:
    """The rows of all sources in order, kept from an earlier run or read and tokenised."""

    def make() -> SourceRows:
        return made_rows(sources, data, processor, told)

    if data.token_cache is None:
        return make()
    return TokenCache(data.token_cache, tell, told.cache).rows(lambda: described(sources, data, processor), make)


def made_rows(
    sources: Sequence[Source], data: DataConfig, processor: Processor, told: Told = OF_TRAINING
) -> SourceRows:
    """The rows of all sources in order, with a hash of what each row says if some are to be held out.

    The pieces of a text have one hash, and so stay together.
    """
    limits = Limits(
        max_length_tokens=data.max_length_tokens, long_rows=data.long_rows, supervise=data.supervise,
        on_bad_row=data.on_bad_row, remedy=told.long, mend=told.bad,
    )  # fmt: skip
    maker = Maker(processor, limits)
    rows: list[TokenRow] = []
    places: list[range] = []
    digests: list[bytes] = []
    for source in sources:
        start = len(rows)
        for example in source.examples(roles=data.supervise.roles, preference=data.preference):
            found = maker.rows(example)
            rows.extend(found)
            if isinstance(example, Example) and data.held_out is not None:
                digests.extend([example.digest()] * len(found))
        places.append(range(start, len(rows)))
    maker.finish()
    return SourceRows(token_rows(rows, maker), places, digests, maker.num_media_unseen)


def described(sources: Sequence[Source], data: DataConfig, processor: Processor) -> dict[str, Any]:
    """All that decides which rows are made of some sources: a name for what is kept of them."""
    files = [[(piece.name, piece.digest().hex()) for piece in find(source.path)] for source in sources]
    settings = {
        "sources": [{"format": source.format.value, "columns": dict(source.columns)} for source in sources],
        "supervise": {"roles": [role.value for role in data.supervise.roles], "turns": data.supervise.turns.value},
        "preference": data.preference.value,
        "on_bad_row": data.on_bad_row.value,
        "max_length_tokens": data.max_length_tokens,
        "long_rows": data.long_rows.value,
        "digests": data.held_out is not None,
    }
    return about_rows(files, processor, settings)


def tell(message: str) -> None:
    """Say something once, however many processes there are."""
    if is_first_launched():
        print(message, file=sys.stderr)


def identity_of(data: DataConfig) -> dict[str, Any]:
    """What decides which rows a run learns from, but for the seed and their order: contents, and what is done to them.

    Where files are does not count, but what a source of a mixture is called does, as shares are drawn by it.
    """
    return {
        "train": fingerprint(sources_of(data)),
        "stream": stream_of(data) if data.streaming else None,
        "rules": {
            "sources": {name: part_of(data, name) for name in data.sources},
            "format": data.format.value,
            "columns": dict(data.columns),
            "supervise": {"roles": [role.value for role in data.supervise.roles], "turns": data.supervise.turns.value},
            "preference": data.preference.value,
            "held_out": data.held_out,
            # Up to where a stream has been learnt from nothing was wrong with it, or it was left out.
            "on_bad_row": None if data.streaming else data.on_bad_row.value,
        },
    }


def stream_of(data: DataConfig) -> dict[str, Any]:
    """What decides which rows a stream has, beside what decides which rows a set has that is read whole."""
    return {
        "block_rows": data.stream_block_rows,
        "max_length_tokens": data.max_length_tokens,
        "long_rows": data.long_rows.value,
        "check_media": data.check_media.value,  # head finds less damage, and rows that are damaged may be left out
    }


def part_of(data: DataConfig, name: str) -> Mapping[str, Any]:
    """What decides which rows of one source of a mixture are learnt."""
    source = data.sources[name]
    return {"format": source.format.value, "columns": dict(source.columns), "weight": source.weight}
