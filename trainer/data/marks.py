# SPDX-License-Identifier: Apache-2.0
"""Which characters of a rendered conversation are learnt: by who speaks, by turn, or as the row itself says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.processor.chat import BLANK, Message, Rendered, Role
from model.processor.tokenizer import BOS, END_OF_TURN, START_OF_TURN
from trainer.data.config import SuperviseConfig, Turns
from trainer.data.example import UNMARKED, Example, Mark

Range = tuple[int, int]


def learnt_ranges(example: Example, rendered: Rendered, supervise: SuperviseConfig) -> list[Range]:
    """The half-open ranges of characters of ``rendered`` that are learnt, in order, none touching another's inside.

    A turn's mark of its end is learnt with the whole turn, and with a span that reaches its last word.
    """
    if example.is_text:
        return [(len(BOS), len(rendered.text))]
    usual = usual_turns(example.messages, supervise)
    found: list[Range] = []
    for index, (message, turn) in enumerate(zip(example.messages, turns(example.messages, rendered.text), strict=True)):
        mark = example.marks[index] if example.marks else UNMARKED
        if mark.spans is not None:
            found.extend(ranges_of_spans(mark, message, turn, rendered))
        elif mark.train or (mark.train is None and index in usual):
            found.append(turn)
    return joined(found)


def usual_turns(messages: Sequence[Message], supervise: SuperviseConfig) -> list[int]:
    """The turns that are learnt where a row does not say."""
    spoken = [index for index, message in enumerate(messages) if message.role in supervise.roles]
    return spoken[-1:] if supervise.turns is Turns.last else spoken


def turns(messages: Sequence[Message], text: str) -> Iterator[Range]:
    """Where the words of each message stand in the text; with the mark of their end, which a system's have not.

    No text holds marks of turns, so every mark there is begins or ends one.
    """
    # A system's words stand in the first user's turn, before that one's own.
    first, *_ = messages
    place = text.index("\n", text.index(START_OF_TURN)) + 1
    if first.role is Role.system:
        end = place + len("".join(map(str, first.parts)))
        yield place, end
        place, messages = end + len(BLANK), messages[1:]
    for number in range(len(messages)):
        if number:
            place = text.index("\n", text.index(START_OF_TURN, place)) + 1
        end = text.index(END_OF_TURN, place) + len(END_OF_TURN)
        yield place, end
        place = end


def ranges_of_spans(mark: Mark, message: Message, turn: Range, rendered: Rendered) -> Iterator[Range]:
    """Where the spans of a message stand in the text."""
    pieces = list(texts_of(message, turn[0], rendered))
    last = max((start + length for start, _, length in pieces if length), default=0)
    for span_start, span_end in mark.spans or ():
        for start, place, length in pieces:
            first, end = max(span_start, start), min(span_end, start + length)
            if first < end:
                yield place + first - start, place + end - start
        if span_start < last <= span_end and message.role is not Role.system:
            yield turn[1] - len(END_OF_TURN), turn[1]


def texts_of(message: Message, place: int, rendered: Rendered) -> Iterator[tuple[int, int, int]]:
    """Of each text of a message: where it starts among its texts and in the rendered one, and its length there."""
    runs, start = dict(rendered.runs), 0
    for part in message.parts:
        if not isinstance(part, str):
            # A recording may have become several runs.
            while (end := runs.get(place + len(BLANK))) is not None:
                place = end + len(BLANK)
            continue
        said = part if message.role is Role.system else part.strip()
        space = 0 if message.role is Role.system else len(part) - len(part.lstrip())
        yield start + space, place, len(said)
        start, place = start + len(part), place + len(said)


def joined(ranges: Sequence[Range]) -> list[Range]:
    """The ranges in order, those that overlap or touch made one."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
