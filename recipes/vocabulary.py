# SPDX-License-Identifier: Apache-2.0
"""Which tokens a smaller model keeps, as a recipe's ``vocabulary`` says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from model.config import ModelConfig
from model.errors import ConfigError, InputError
from model.processor.selection import Counts, choose, ids_of_tokens, tokens_from_corpus, tokens_from_list
from model.processor.tokenizer import Tokenizer
from model.processor.trimming import SENTENCEPIECE_FILE, Trimming
from model.slicing.vocabulary import Vocabulary
from recipes.progress import progress_bar


@dataclass(kw_only=True, slots=True)
class VocabularyConfig:
    """Which tokens to keep; with neither a list nor a corpus, all.

    Special and other added tokens, bytes, what conversations are written with, and what kept tokens are built of
    stay in any case.

    Raises:
        ConfigError: A value is out of its range, or is of no use without a corpus.
    """

    tokens: Path | None = None  # file of tokens to keep, one a line, written as in tokenizer.json or as JSON strings
    corpus: list[str] = field(default_factory=list)  # texts, or conversations in .jsonl, whose tokens are counted
    max_tokens: int | None = None  # keep at most so many of the text's, all in all: the corpus' most frequent
    min_count: int = 1  # how often a token must stand in the corpus to be kept

    def __post_init__(self) -> None:
        if self.min_count < 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ConfigError(
                f"vocabulary: min_count is {self.min_count} and max_tokens {self.max_tokens}; both are at least 1"
            )
        if not self.corpus and (self.max_tokens is not None or self.min_count > 1):
            raise ConfigError(
                "vocabulary: max_tokens and min_count choose among the tokens of a corpus; give"
                " vocabulary.corpus=[FILE], or leave them out"
            )

    @property
    def is_whole(self) -> bool:
        """Whether every token is kept."""
        return self.tokens is None and not self.corpus


def chosen_vocabulary(
    config: VocabularyConfig,
    checkpoint: Path,
    model_config: ModelConfig,
    *,
    trimming: Trimming | None = None,
    console: Console | None = None,
) -> Vocabulary | None:
    """The vocabulary that a recipe asks for, said on the console with what it covers; None if it is the whole one.

    Some 1 MB of corpus a second; a bar shows how far it is.

    Args:
        config: The recipe's part.
        checkpoint: The parent's directory, which has the tokenizer.
        model_config: The parent's, without the towers that are left out.
        trimming: Of the parent's tokenizer, if it was read already, which takes some 10 s for Gemma's own.
        console: Where to say it; standard output if None.

    Raises:
        InputError: A file is missing or malformed, or a listed token is none.
        CheckpointError: The tokenizer is missing, or of a kind that cannot be trimmed.
        SliceError: More must stay than ``max_tokens`` allows.
    """
    if config.is_whole:
        return None
    console = console or Console(soft_wrap=True, highlight=False)
    trimming, tokenizer = trimming or Trimming.read(checkpoint), Tokenizer.read(checkpoint)
    listed: list[int] = []
    if config.tokens is not None:
        listed = ids_of_tokens(tokens_from_list(config.tokens), trimming, str(config.tokens))
    counts = counted(config.corpus, tokenizer, console)
    vocabulary = choose(
        counts.ordered(config.min_count), tokenizer, trimming, model_config,
        always=listed, max_tokens=config.max_tokens,
    )  # fmt: skip
    console.print(f"vocabulary: {describe(vocabulary, counts)}")
    if (checkpoint / SENTENCEPIECE_FILE).is_file():
        console.print(f"vocabulary: {SENTENCEPIECE_FILE} is left out, which cannot be trimmed")
    return vocabulary


def describe(vocabulary: Vocabulary, counts: Counts) -> str:
    """How many tokens stay, and how much of the corpus they cover."""
    told = f"{len(vocabulary):,} of {vocabulary.parent_size:,} tokens of the text stay"
    if counts.total:
        told += f"; they are {counts.share(vocabulary):.2%} of the corpus' {counts.total:,} tokens"
    return told


def counted(corpus: list[str], tokenizer: Tokenizer, console: Console) -> Counts:
    """The tokens of a corpus, counted under a bar if the console is a terminal.

    Raises:
        InputError: As ``tokens_from_corpus``; or the corpus has no tokens at all.
    """
    num_bytes = sum(Path(path).stat().st_size for path in corpus if Path(path).is_file())
    done = 0
    with progress_bar("counting tokens", console=console) as progress:

        def count_on(more: int) -> None:
            nonlocal done
            done += more
            progress(done, num_bytes)

        counts = tokens_from_corpus(corpus, tokenizer, progress=count_on)
    if corpus and not counts.total:
        raise InputError(f"vocabulary: corpus {', '.join(corpus)} has no text; name files that have")
    return counts
