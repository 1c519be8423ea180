# SPDX-License-Identifier: Apache-2.0
"""Which tokens a smaller vocabulary is to have: those of a list, or those that a corpus uses most."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.errors import InputError, SliceError
from model.processor.tokenizer import Tokenizer
from model.processor.trimming import Trimming
from model.slicing.vocabulary import Vocabulary, required_ids

# What stands between the turns of a conversation, and around its media.
LAYOUT = ("user\n", "model\n", *("\n" * lines for lines in range(1, 6)))
CONVERSATIONS = ".jsonl"  # the ending of files that hold conversations; all others hold text
PIECE_CHARACTERS = 16_384  # of a text that are read at once
SHOWN = 5  # of what is wrong, in a message

Progress = Callable[[int], None]  # called with how many more bytes have been read


@dataclass(frozen=True)
class Counts:
    """How often each token of a vocabulary stands in a corpus."""

    of: Counter[int]

    @property
    def total(self) -> int:
        """How many tokens the corpus has."""
        return self.of.total()

    def ordered(self, min_count: int = 1) -> list[int]:
        """The ids that stand there at least so often: the most frequent first, of equal ones the smaller id."""
        wanted = ((number, count) for number, count in self.of.items() if count >= min_count)
        return [number for number, _ in sorted(wanted, key=lambda item: (-item[1], item[0]))]

    def share(self, vocabulary: Vocabulary) -> float:
        """Which part of the corpus' tokens a vocabulary keeps, from 0 to 1."""
        kept = sum(count for number, count in self.of.items() if number in vocabulary)
        return kept / self.total if self.total else 1.0


def tokens_from_list(path: Path) -> list[str]:
    """The tokens of a file, one a line: as they stand in ``tokenizer.json``, or as JSON strings.

    A line in double quotes is JSON, for tokens with line breaks or with white space that an editor would eat.
    Empty lines are left out.

    Raises:
        InputError: There is no such file, it is not UTF-8, or a line in double quotes is no JSON string.
    """
    tokens = []
    for number, line in enumerate(lines_of(path), start=1):
        token = line.removesuffix("\n").removesuffix("\r")
        if len(token) > 1 and token.startswith('"') and token.endswith('"'):
            try:
                token = json.loads(token)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: found {token}, which is no JSON string ({error.msg})") from None
        if token:
            tokens.append(token)
    return tokens


def ids_of_tokens(tokens: Iterable[str], trimming: Trimming, where: str) -> list[int]:
    """The ids of tokens, written as in ``tokenizer.json``, in their order.

    Raises:
        InputError: Some are no tokens of this vocabulary.
    """
    wanted = list(tokens)
    if unknown := [token for token in wanted if token not in trimming.ids]:
        listed = ", ".join(map(repr, unknown[:SHOWN])) + (", …" if len(unknown) > SHOWN else "")
        raise InputError(
            f"{where}: {len(unknown)} of {len(wanted)} are no tokens of {trimming.origin}: {listed}; write them as in"
            " its vocabulary, where Gemma has '▁' for a space"
        )
    return [trimming.ids[token] for token in wanted]


def tokens_from_corpus(
    paths: Sequence[Path | str], tokenizer: Tokenizer, *, progress: Progress | None = None
) -> Counts:
    """Count the tokens of texts, as the tokenizer reads them.

    Files that end in ``.jsonl`` hold a conversation a line (``messages``, of which the texts are counted), or
    a ``text``. Others are counted whole, but read in pieces that end where a line does: where a token lies across
    such a place, its parts are counted.

    Args:
        paths: UTF-8 files.
        tokenizer: The whole vocabulary.
        progress: Told how many bytes have been read.

    Raises:
        InputError: A file is missing, not UTF-8, or a line of it is no conversation.
    """
    counts: Counter[int] = Counter()
    for path in map(Path, paths):
        texts = texts_of_conversations(path) if path.suffix == CONVERSATIONS else pieces_of_text(path)
        for text, num_bytes in texts:
            counts.update(tokenizer.encode(text))
            if progress is not None:
                progress(num_bytes)
    return Counts(counts)


def choose(
    ids: Iterable[int],
    tokenizer: Tokenizer,
    trimming: Trimming,
    config: ModelConfig,
    *,
    always: Iterable[int] = (),
    max_tokens: int | None = None,
) -> Vocabulary:
    """The vocabulary that keeps what it must, and of ``ids`` the first ones, each with what it is built of.

    Args:
        ids: Those wished for, most wanted first.
        tokenizer: The whole vocabulary.
        trimming: The same, to be trimmed.
        config: The model's.
        always: Ids that are kept besides, however many they are.
        max_tokens: How many of the text's ids are kept at most, all in all; one that no longer fits with what it is
            built of is passed over. None: no limit.

    Raises:
        SliceError: Not even what must stay fits.
    """
    size = config.text.vocab_size_per_layer_input
    layout = (number for text in LAYOUT for number in tokenizer.encode(text))
    must = trimming.closed({*trimming.required(), *layout, *required_ids(config), *always})
    kept = {number for number in must if number < size}
    if max_tokens is not None and len(kept) > max_tokens:
        raise SliceError(
            f"vocabulary: max_tokens is {max_tokens:,}, but {len(kept):,} must stay: special and other added tokens,"
            f" bytes, what conversations are written with, and the listed tokens; allow at least {len(kept):,}"
        )
    for number in ids:
        if number in kept or number >= size:
            continue
        more = trimming.closed([number]) - kept
        if max_tokens is None or len(kept) + len(more) <= max_tokens:
            kept |= more
    return Vocabulary.of(kept, config)


def pieces_of_text(path: Path) -> Iterator[tuple[str, int]]:
    """A text in pieces of some thousand characters, and the size of each in bytes; a piece ends where a line does."""
    lines: list[str] = []
    size = 0
    for line in lines_of(path):
        # A line break joins with white space behind it: pieces are cut before words.
        if size >= PIECE_CHARACTERS and not line[0].isspace():
            yield joined(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield joined(lines)


def joined(lines: list[str]) -> tuple[str, int]:
    """Lines as one text, and its size in bytes."""
    text = "".join(lines)
    return text, len(text.encode())


def texts_of_conversations(path: Path) -> Iterator[tuple[str, int]]:
    """The texts of a JSON Lines file, white space around each dropped as in a conversation, and their share of it."""
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: found no JSON ({error.msg}); expected a conversation or text a line") from None
        texts = list(texts_of_row(row, where))
        yield from ((text, 0) for text in texts)
        yield "", len(line.encode())


def texts_of_row(row: Any, where: str) -> Iterator[str]:
    """The texts of one row: of its ``messages``, or its ``text``.

    Raises:
        InputError: It has neither.
    """
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        yield row["text"]
        return
    turns = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and "content" in turn for turn in turns):
        raise InputError(
            f"{where}: found no conversation; expected an object with 'messages', a list of turns with 'content', or"
            " with 'text'"
        )
    for turn in turns:
        items = turn["content"] if isinstance(turn["content"], list) else [turn["content"]]
        for item in items:
            text = item.get("text", "") if isinstance(item, dict) else item  # an item without text is a medium
            if not isinstance(text, str):
                raise InputError(f"{where}: a turn's content is {text!r}; it must be text, or texts and media")
            yield text.strip()


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, line ends as they are; none is empty.

    Raises:
        InputError: There is no such file, or it is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if text := decoded(line, f"{path}:{number}").removeprefix("\ufeff" if number == 1 else ""):
                    yield text
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"vocabulary: no file '{path}' (relative names start at {Path.cwd()})") from None


def decoded(line: bytes, where: str) -> str:
    """A line as text, or InputError."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        found = f"found byte {line[error.start]:#04x} at column {error.start + 1}"
        raise InputError(f"{where}: {found}; expected UTF-8 text") from None
