# SPDX-License-Identifier: Apache-2.0
"""Which tokens are trained on: those that the assistant wrote, the mark that ends its turn included.

Or what else is asked for, by role, by turn, or by the row itself (``marks``); of a text everything but its ``<bos>``.
Never soft tokens and what delimits them, whoever shows the medium. Everything is tokenised, and the header of
every medium read, before training starts: a conversation that cannot be used is found out in seconds, not in the
middle of a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.config import ModelConfig
from model.errors import InputError
from model.processor.chat import Rendered, Role
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from trainer.data.config import LongRows, OnBadRow, SuperviseConfig
from trainer.data.example import UNMARKED, Example
from trainer.data.faults import MEND, Fault, in_lines, raise_faults
from trainer.data.marks import Range, learnt_ranges

TRAINING_REMEDY = "data.max_length_tokens; data.long_rows=skip leaves such rows out, truncate cuts off their ends"
USUAL = SuperviseConfig()


@dataclass(frozen=True, eq=False)
class TokenRow:
    """A conversation as tokens; ``supervised`` is True where the token is one to learn to say.

    ``pictures`` and ``recordings``, not yet decoded, belong to the runs of placeholders in ``ids``, in order;
    ``wholes`` are the recordings as they were given, before long ones were cut. ``text_digest`` is, of a piece of a
    text, a hash of the text's tokens, and else nothing: it tells which pieces belong together.
    """

    ids: Int[Tensor, " seq"]
    supervised: Bool[Tensor, " seq"]
    where: str
    pictures: tuple[Picture, ...] = ()
    recordings: tuple[Recording, ...] = ()
    wholes: tuple[Recording, ...] = ()
    text_digest: bytes = b""

    @property
    def media(self) -> tuple[Picture | Recording, ...]:
        """Everything that has to be decoded."""
        return (*self.pictures, *self.recordings)


@dataclass(frozen=True, eq=False)
class PreferenceRow:
    """A conversation that ends with the answer that was preferred, and one that ends with the other."""

    chosen: TokenRow
    rejected: TokenRow


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows to learn from or be measured on, the examples they were made of if kept, and what became of others.

    ``num_skipped`` of the examples are not among the rows for their length, ``num_bad`` because they cannot be used;
    the first of these are told in ``faults``. ``num_truncated`` of the rows lack their end.
    """

    rows: Sequence[TokenRow]
    examples: Sequence[Example]
    num_skipped: int
    num_truncated: int = 0
    num_bad: int = 0
    faults: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What rows may be like, and what becomes of others.

    Args:
        max_length_tokens: Tokens that a row may have.
        long_rows: What becomes of longer ones; texts are cut into pieces instead.
        supervise: Which turns are learnt.
        on_bad_row: What becomes of rows that cannot be used.
        remedy: What a user can do about a row that is refused for its length.
        mend: What a user can do about rows that cannot be used.
    """

    max_length_tokens: int
    long_rows: LongRows
    supervise: SuperviseConfig = field(default_factory=SuperviseConfig)
    on_bad_row: OnBadRow = OnBadRow.refuse
    remedy: str = TRAINING_REMEDY
    mend: str = MEND


@dataclass
class Maker:
    """Makes rows of examples, one by one, and keeps count of those that are left out or cannot be one."""

    processor: Processor
    limits: Limits
    num_seen: int = 0
    num_rows: int = 0
    num_skipped: int = 0
    num_truncated: int = 0
    num_media_unseen: int = 0  # examples with images or sound, of which no row has any
    faults: list[Fault] = field(default_factory=list)
    too_long: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.media_ids = ids_of_media(self.processor.config)

    def rows(self, example: Example | Fault) -> list[TokenRow]:
        """The row of an example, none if it is left out, or the pieces of a long text."""
        self.num_seen += 1
        if isinstance(example, Fault):
            self.faults.append(example)
            return []
        found = self.rows_within_limits(example)
        if example.shows_media and not any(row.media for row in found):
            self.num_media_unseen += 1
        return found

    def whole_row(self, example: Example) -> TokenRow:
        """What is learnt of an example, however long; raises as ``row_of``."""
        if example.rejected is None:
            return row_of(example, self.processor, self.media_ids, supervise=self.limits.supervise)
        # Both sides are looked at, though one is learnt.
        return pair_of(example, self.processor, self.media_ids, supervise=self.limits.supervise).chosen

    def rows_within_limits(self, example: Example) -> list[TokenRow]:
        """As ``rows``, of what is no fault already."""
        try:
            row = self.whole_row(example)
        except InputError as error:
            self.faults.append(Fault(example.where, f"{example.field}: {error}"))
            return []
        found = [row]
        if len(row.ids) > self.limits.max_length_tokens:
            found = (
                list(pieces(row, self.limits.max_length_tokens)) if example.is_text else self.shortened(row, example)
            )
        self.num_rows += len(found)
        return found

    def shortened(self, row: TokenRow, example: Example) -> list[TokenRow]:
        """What is left of a conversation that is too long, if anything."""
        length, long_rows = self.limits.max_length_tokens, self.limits.long_rows
        if long_rows is LongRows.refuse:
            found = f"found {len(row.ids)} tokens; expected at most {length} ({self.limits.remedy})"
            self.too_long.append(Fault(example.where, f"{example.field}: {found}"))
            return []
        shorter = truncated(row, length, self.media_ids) if long_rows is LongRows.truncate else None
        if shorter is None:
            self.num_skipped += 1
            return []
        self.num_truncated += 1
        return [shorter]

    def finish(self) -> None:
        """Say what is wrong, when all examples have been given.

        Raises:
            InputError: Rows cannot be used or are too long, and are to be refused for it, or none is left.
        """
        bad = self.faults if self.limits.on_bad_row is OnBadRow.refuse else []
        raise_faults([*bad, *self.too_long], total=self.num_seen, remedy=self.limits.mend)
        if self.num_rows:
            return
        if not self.num_skipped:
            raise_faults(self.faults, total=self.num_seen, remedy="and none is left; mend them")
        raise InputError(
            f"data: none of {self.num_seen} rows is left, {self.num_skipped} of them being longer than"
            f" {self.limits.max_length_tokens} tokens; raise data.max_length_tokens"
        )


def tokenize(
    examples: Iterable[Example | Fault],
    processor: Processor,
    *,
    max_length_tokens: int,
    long_rows: LongRows,
    remedy: str = TRAINING_REMEDY,
    supervise: SuperviseConfig = USUAL,
    on_bad_row: OnBadRow = OnBadRow.refuse,
) -> TokenRows:
    """Turn examples into rows, ``examples[i]`` of the result into ``rows[i]``; a text may become several of them.

    Args:
        examples: Conversations and texts, and what is wrong with rows that are neither.
        processor: That of the model.
        max_length_tokens: Tokens that a row may have.
        long_rows: What becomes of longer ones.
        remedy: What a user can do about one that is refused for its length.
        supervise: Which turns are learnt.
        on_bad_row: What becomes of those that cannot be used.

    Raises:
        InputError: Rows are malformed as conversations, have media that cannot be used, have nothing to learn, are
            longer than ``max_length_tokens`` and to be refused, or none is left.
    """
    limits = Limits(
        max_length_tokens=max_length_tokens, long_rows=long_rows, supervise=supervise, on_bad_row=on_bad_row,
        remedy=remedy,
    )  # fmt: skip
    maker = Maker(processor, limits)
    rows: list[TokenRow] = []
    used: list[Example] = []
    for example in examples:
        found = maker.rows(example)
        rows.extend(found)
        if isinstance(example, Example):
            used.extend([example] * len(found))
    maker.finish()
    return token_rows(rows, maker, examples=used)


def token_rows(rows: Sequence[TokenRow], maker: Maker, *, examples: Sequence[Example] = ()) -> TokenRows:
    """Rows with what their maker counted."""
    return TokenRows(
        rows, examples, maker.num_skipped, maker.num_truncated, len(maker.faults), tuple(in_lines(maker.faults))
    )


def row_of(
    example: Example, processor: Processor, media_ids: Int[Tensor, " ids"], *, supervise: SuperviseConfig = USUAL
) -> TokenRow:
    """An example as tokens, however many, its media looked at.

    Raises:
        InputError: It is malformed as a conversation, has media that cannot be used, or nothing to learn.
    """
    if example.is_text:
        rendered = processor.render_text(example.messages[0].text)
    else:
        rendered = processor.render(example.messages)
    for picture in rendered.pictures:
        picture.check()
    ranges = learnt_ranges(example, rendered, supervise)
    row = marked(rendered, processor.tokenizer, ranges, where=example.where)
    row = dataclasses.replace(
        row, supervised=row.supervised & ~torch.isin(row.ids, media_ids), wholes=example.recordings
    )
    if not row.supervised[1:].any():
        is_usual = supervise.roles == [Role.assistant] and not example.marks
        raise InputError(
            "found no token of the assistant's; expected at least one"
            if is_usual
            else "found no token that is learnt; expected at least one (by data.supervise, or the row's own marks)"
        )
    return row


def pair_of(
    example: Example, processor: Processor, media_ids: Int[Tensor, " ids"], *, supervise: SuperviseConfig = USUAL
) -> PreferenceRow:
    """Both conversations of a pair as tokens, of each the answer marked.

    Raises:
        InputError: As ``row_of``, of one of them.
    """
    assert example.rejected is not None, "the example is a pair"
    chosen = row_of(example, processor, media_ids, supervise=supervise)
    asked = tuple(mark for mark in example.marks if mark.train is False)
    marks = (*asked, *[UNMARKED] * (len(example.rejected) - len(asked)))
    other = dataclasses.replace(example, messages=example.rejected, marks=marks, rejected=None)
    try:
        return PreferenceRow(chosen, row_of(other, processor, media_ids, supervise=supervise))
    except InputError as error:
        raise InputError(f"rejected: {error}") from None


def ids_of_media(config: ModelConfig) -> Int[Tensor, " ids"]:
    """Placeholders and delimiters of all media of a model."""
    towers = (tower for tower in (config.vision, config.audio) if tower is not None)
    return torch.tensor([token for tower in towers for token in tower.tokens.ids], dtype=torch.int64)


def truncated(row: TokenRow, length: int, media_ids: Int[Tensor, " ids"]) -> TokenRow | None:
    """The first ``length`` tokens of a row; None if a run of soft tokens would go, or all there is to learn."""
    if torch.isin(row.ids[length:], media_ids).any() or not row.supervised[1:length].any():
        return None
    return dataclasses.replace(row, ids=row.ids[:length], supervised=row.supervised[:length])


def pieces(row: TokenRow, length: int) -> Iterator[TokenRow]:
    """A text of any length in rows of at most ``length`` tokens, each with the ``<bos>`` that the text begins with.

    So every token of the text is learnt in exactly one row.
    """
    begin, digest = row.ids[:1], hashlib.sha256(row.ids.numpy().tobytes()).digest()
    parts = row.ids[1:].split(length - 1)
    for number, part in enumerate(parts, start=1):
        ids = torch.cat([begin, part])
        supervised = torch.ones(len(ids), dtype=torch.bool)
        supervised[0] = False
        yield TokenRow(ids, supervised, f"{row.where} (piece {number} of {len(parts)})", text_digest=digest)


def supervise(rendered: Rendered, tokenizer: Tokenizer, *, where: str) -> TokenRow:
    """The tokens of a rendered conversation, those wholly inside the assistant's words marked."""
    return marked(rendered, tokenizer, rendered.assistant, where=where)


def marked(rendered: Rendered, tokenizer: Tokenizer, ranges: Sequence[Range], *, where: str) -> TokenRow:
    """The tokens of a rendered conversation, those wholly inside one of ``ranges`` marked, which are in order.

    A token that reaches over the border also holds other characters; the model is not asked to say those.
    """
    encoded = tokenizer.encode_spans(rendered.text)
    supervised = torch.zeros(len(encoded.ids), dtype=torch.bool)
    spans = iter(ranges)
    span = next(spans, None)
    for position, (start, end) in enumerate(encoded.offsets):
        while span is not None and start >= span[1]:
            span = next(spans, None)
        if span is None:
            break
        supervised[position] = span[0] <= start < end <= span[1]
    ids = torch.tensor(encoded.ids, dtype=torch.int64)
    return TokenRow(ids, supervised, where, rendered.pictures, rendered.recordings)
