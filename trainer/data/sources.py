# SPDX-License-Identifier: Apache-2.0
"""From the names of sources to examples: found, read, and each row understood or told why it is not.

Every row is looked at before anything is trained, and every fault is reported with its place. Fields that a format
does not know are allowed and ignored, but for other names of media; ``formats`` says what rows may look like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from model.errors import InputError
from model.processor.chat import Role
from trainer.data.config import DataConfig, OnPreference, RowFormat
from trainer.data.example import Example
from trainer.data.faults import Fault, raise_faults
from trainer.data.finding import find
from trainer.data.formats.known import KNOWN, check_columns, format_of, parsed, renamed
from trainer.data.reading import Piece, Row
from trainer.data.wording import fields_of

TOLD_FROM = 100  # rows of a source that its format may be told from


@dataclass(frozen=True)
class Source:
    """One source as it is to be read.

    Args:
        path: A file, a directory or a data set of the hub, as ``finding`` says.
        format: That of its rows; auto tells it from them.
        columns: Our fields and what they are called there.
        weight: How often an epoch takes each row.
        name: What a mixture calls it.
        streaming: Whether it is read while training.
    """

    path: str
    format: RowFormat = RowFormat.auto
    columns: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    name: str = ""
    streaming: bool = False

    def pieces(self) -> list[Piece]:
        """Its files, or the parts that it is read by; raises as ``find``."""
        return find(self.path, streaming=self.streaming)

    def examples(
        self, *, roles: Collection[Role] = (Role.assistant,), preference: OnPreference = OnPreference.refuse
    ) -> Iterator[Example | Fault]:
        """What its rows hold, in order, or what is wrong with them; nothing is kept.

        Args:
            roles: Whose words are learnt: a row in which none of them speaks is a fault.
            preference: What becomes of pairs.

        Raises:
            InputError: There is no such source, it cannot be read, has no rows, or holds pairs that are refused.
        """
        for piece in self.pieces():
            yield from self.examples_of(piece, roles, preference)

    def examples_of(
        self, piece: Piece, roles: Collection[Role], preference: OnPreference, *, start: int = 0
    ) -> Iterator[Example | Fault]:
        """Those of one file, or one split, without its first ``start`` rows."""
        coming = piece.read(0)
        first = list(islice(coming, TOLD_FROM))
        if not first:
            if self.streaming:  # of many files or shards one may be empty; that all are is refused elsewhere
                return
            raise InputError(f"data: '{piece.name}' has no rows")
        form = self.format if self.format is not RowFormat.auto else self.told_from(first, piece)
        if form is RowFormat.preference and preference is OnPreference.refuse:
            raise InputError(
                f"data: '{piece.name}' holds preference pairs, and there is no preference objective yet to train on"
                " them; data.preference=chosen learns the chosen answers alone, as supervised fine-tuning"
            )
        for row in chain(first, coming) if start == 0 else piece.read(start):
            yield row if isinstance(row, Fault) else parsed(
                row, form, piece.directory, columns=self.columns, roles=roles
            )  # fmt: skip

    def told_from(self, first: Sequence[Row | Fault], piece: Piece) -> RowFormat:
        """The format of the first of these rows that has one.

        Raises:
            InputError: There are objects among them, and none has one.
        """
        rows = [renamed(row.value, self.columns) for row in first if isinstance(row, Row)]
        found = next((form for row in rows if (form := format_of(row)) is not None), None)
        objects = [row for row in rows if isinstance(row, dict)]
        if found is None and objects:
            raise InputError(
                f"data: '{piece.name}': rows of no known format: {fields_of(objects[0])}; expected the fields of one"
                f" ({KNOWN}), or data.columns to say what they are called here"
            )
        return found or RowFormat.messages


def sources_of(data: DataConfig) -> list[Source]:
    """What is learnt from, in order.

    Raises:
        ConfigError: Columns are named for fields that rows do not have.
    """
    check_columns(data.columns, data.format, "data.columns")
    sources = [Source(path, data.format, data.columns, name=path, streaming=data.streaming) for path in data.train]
    for name, given in data.sources.items():
        form = data.format if given.format is RowFormat.auto else given.format
        columns = given.columns or data.columns
        check_columns(columns, form, f"data.sources.{name}.columns")
        sources.append(Source(given.path, form, columns, given.weight, name, data.streaming))
    return sources


def read_conversations(paths: Sequence[str | Path]) -> list[Example]:
    """The examples of all sources, in order.

    Raises:
        InputError: A source is missing or holds no row, or rows are malformed; the first ones are listed.
    """
    found = list(chain.from_iterable(Source(str(path)).examples() for path in paths))
    raise_faults([one for one in found if isinstance(one, Fault)], total=len(found))
    return [one for one in found if isinstance(one, Example)]


def fingerprint(sources: Sequence[Source]) -> str:
    """A hash of the content of all sources in order: the same data under another name is the same data.

    Of those that are streamed it is one of what can be known without reading all of them.
    """
    digest = hashlib.sha256()
    for source in sources:
        for piece in source.pieces():
            digest.update(piece.glance() if source.streaming else piece.digest())
    return digest.hexdigest()
