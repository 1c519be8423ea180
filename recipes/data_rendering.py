# SPDX-License-Identifier: Apache-2.0
"""A tokenised row for a person: its text again, who speaks, which tokens are learnt, and what is no text at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

from rich.text import Text

from model.config import ModelConfig
from model.processor.chat import Role
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from trainer.data.supervise import TokenRow

LONGEST_ROLE = 8  # tokens behind <start_of_turn> in which the speaker's name must end
BEGIN_LEARNT, END_LEARNT = "⟦", "⟧"  # around what is learnt, where there are no colours
NO_TURN = ""  # the role of what stands outside of turns
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) != "\n"}


class Kind(StrEnum):
    """What a token is to a reader."""

    text = "text"
    special = "special"  # a mark, as of turns
    medium = "medium"  # a soft token, or what delimits some


STYLES = {Kind.text: "", Kind.special: "cyan", Kind.medium: "magenta"}
LEARNT_STYLE = "bold green"


@dataclass(frozen=True)
class Token:
    """One token of a row: its id, how the vocabulary writes it, who says it, and whether it is learnt."""

    id: int
    piece: str
    kind: Kind
    role: str
    supervised: bool

    def as_json(self) -> dict[str, Any]:
        """In plain values."""
        return {"id": self.id, "token": self.piece, "role": self.role, "supervised": self.supervised}


@dataclass(frozen=True)
class Run:
    """Neighbours that are shown as one: of a kind, learnt or not; of a medium everything that stands for one item."""

    text: str
    kind: Kind
    supervised: bool


def tokens_of(row: TokenRow, processor: Processor) -> list[Token]:
    """The tokens of a row, each with what there is to know of it."""
    tokenizer, ids = processor.tokenizer, row.ids.tolist()
    media = set(media_names(processor.config))
    special = {number for number, token in tokenizer.added().items() if token.special} | {
        tokenizer.pad_id, tokenizer.bos_id, tokenizer.start_of_turn_id, tokenizer.end_of_turn_id,
    }  # fmt: skip
    return [
        Token(
            number,
            tokenizer.token(number) or f"<{number}>",
            Kind.medium if number in media else Kind.special if number in special else Kind.text,
            role,
            supervised,
        )
        for number, role, supervised in zip(ids, roles_of(ids, tokenizer), row.supervised.tolist(), strict=True)
    ]


def roles_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Who says each token: the one whose turn it stands in, its marks included."""
    roles, role = [], NO_TURN
    for place, number in enumerate(ids):
        if number == tokenizer.start_of_turn_id:
            behind = tokenizer.decode(ids[place + 1 : place + 1 + LONGEST_ROLE])
            name = behind.partition("\n")[0].replace(" ", "")  # a vocabulary without a decoder puts spaces in
            role = Role.assistant.value if name == "model" else name
        roles.append(role)
        if number == tokenizer.end_of_turn_id:
            role = NO_TURN
    return roles


def media_names(config: ModelConfig) -> dict[int, str]:
    """The ids that stand for media, and of which medium each is one."""
    towers = {"image": config.vision, "audio": config.audio}
    return {number: name for name, tower in towers.items() if tower is not None for number in tower.tokens.ids}


def runs_of(tokens: Sequence[Token], processor: Processor) -> Iterator[Run]:
    """Tokens as the text they came from; special ones by their names, media as ``<image 256 soft tokens>``."""
    names = media_names(processor.config)
    towers = (processor.config.vision, processor.config.audio)
    ends = {tower.tokens.end_id for tower in towers if tower is not None}
    num_ended = 0

    def alike(token: Token) -> tuple[Kind, bool, object]:
        nonlocal num_ended
        own = (token.kind, token.supervised, (names.get(token.id), num_ended))
        num_ended += token.id in ends  # the next medium is another item
        return own

    for (kind, supervised, _), group in groupby(tokens, key=alike):
        ids = [token.id for token in group]
        if kind is Kind.medium:
            num_soft = sum(number in soft_ids(processor.config) for number in ids)
            text = f"<{names[ids[0]]} {num_soft} soft tokens>"
        elif kind is Kind.special:
            text = "".join(processor.tokenizer.token(number) or f"<{number}>" for number in ids)
        else:
            text = processor.tokenizer.decode(ids)
        yield Run(text, kind, supervised)


def soft_ids(config: ModelConfig) -> set[int]:
    """The placeholders."""
    return {tower.tokens.placeholder_id for tower in (config.vision, config.audio) if tower is not None}


def rendered(tokens: Sequence[Token], processor: Processor, *, colour: bool, most: int | None = None) -> Text:
    """A row's text: what is learnt in a colour of its own, or between marks where there are no colours.

    Args:
        tokens: Those of the row.
        processor: What they were made with.
        colour: Whether colours can be seen.
        most: Tokens to show; of more, the middle is left out. None: all.
    """
    head, tail = shown_ends(tokens, most)
    if head >= tail:
        return together(runs_of(tokens, processor), colour=colour)
    first, last = (together(runs_of(part, processor), colour=colour) for part in (tokens[:head], tokens[tail:]))
    return Text.assemble(first, (f"\n… {tail - head:,} tokens …\n", "dim"), last)


def shown_ends(tokens: Sequence[Token], most: int | None) -> tuple[int, int]:
    """Where the middle that is left out begins and ends; never within a medium, which takes no room."""
    if most is None or len(tokens) <= most:
        return len(tokens), len(tokens)
    head, tail = most - most // 2, len(tokens) - most // 2
    while head < tail and Kind.medium is tokens[head].kind is tokens[head - 1].kind:
        head += 1
    while head < tail and Kind.medium is tokens[tail].kind is tokens[tail - 1].kind:
        tail -= 1
    return head, tail


def together(runs: Iterable[Run], *, colour: bool) -> Text:
    """Runs one behind the other."""
    text = Text()
    for learnt, group in groupby(runs, key=lambda run: run.supervised):
        text.append(BEGIN_LEARNT if learnt and not colour else "")
        for run in group:
            text.append(visible(run.text), LEARNT_STYLE if learnt else STYLES[run.kind])
        text.append(END_LEARNT if learnt and not colour else "")
    return text


def visible(text: str) -> str:
    """The text with its control characters written out: data may not steer a terminal."""
    return text.translate(CONTROLS)


def spoken(tokens: Sequence[Token]) -> str:
    """How many tokens each role has, and how many of them are learnt."""
    said = Counter(token.role for token in tokens)
    learnt = Counter(token.role for token in tokens if token.supervised)
    parts = [
        f"{role or 'outside of turns'} {count:,}{f' ({learnt[role]:,} learnt)' if learnt[role] else ''}"
        for role, count in said.items()
    ]
    return ", ".join(parts)


def listing(tokens: Sequence[Token], *, colour: bool) -> Iterator[Text]:
    """Every token on a line of its own: its place, id and spelling, who says it, and a star where it is learnt."""
    for place, token in enumerate(tokens):
        line = f"{place:>6} {token.id:>7} {'*' if token.supervised else ' '} {token.role:<10} "
        style = (LEARNT_STYLE if token.supervised else STYLES[token.kind]) if colour else ""
        yield Text.assemble(line, (repr(token.piece)[1:-1], style))
