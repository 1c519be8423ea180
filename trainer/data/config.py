# SPDX-License-Identifier: Apache-2.0
"""What a user says about data: which, and what becomes of rows that cannot be taken as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from model.errors import ConfigError
from model.processor.audio import LongAudio
from model.processor.chat import Role


class RowFormat(StrEnum):
    """How a row says what was asked and answered; ``trainer/data/formats`` has a file for each."""

    auto = "auto"  # told from the fields of a source's rows
    messages = "messages"  # {"messages": [{"role": …, "content": …}, …]}
    sharegpt = "sharegpt"  # {"conversations": [{"from": …, "value": …}, …]}
    alpaca = "alpaca"  # {"instruction": …, "input": …, "output": …}
    prompt_completion = "prompt_completion"  # {"prompt": …, "completion": …}
    text = "text"  # {"text": …}, of which every token is learnt
    preference = "preference"  # {"prompt": …, "chosen": …, "rejected": …}


class OnBadRow(StrEnum):
    """What becomes of a run of which some rows cannot be used."""

    refuse = "refuse"
    skip = "skip"  # it goes on without them, and counts them


class OnPreference(StrEnum):
    """What is learnt from a preferred answer beside a rejected one."""

    refuse = "refuse"  # nothing yet: there is no objective that takes both
    chosen = "chosen"  # the preferred answer, as if there were no other


class Turns(StrEnum):
    """Which of the turns of those who are learnt from."""

    all = "all"
    last = "last"


class LongRows(StrEnum):
    """What to do with a conversation of more tokens than a row may have."""

    refuse = "refuse"
    skip = "skip"
    truncate = "truncate"  # its end goes; one whose media would be cut, or that teaches nothing then, is skipped


class CheckMedia(StrEnum):
    """How closely media are looked at before training."""

    full = "full"  # each is decoded
    head = "head"  # its header, as for tokens; its bytes are read, but damage among them ends the run that meets it


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One source of a mixture.

    Raises:
        ConfigError: A value is out of its range.
    """

    path: str  # file, directory, or hub name with :config and @split if need be
    format: RowFormat = RowFormat.auto  # auto takes data.format
    weight: float = 1.0  # how often an epoch takes each row, of 2.5 half of them thrice; streamed, its share of draws
    columns: dict[str, str] = field(default_factory=dict)  # our field: its column; empty takes data.columns

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("data.sources: a path is empty; name a file, a directory or a data set of the hub")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(
                f"data.sources: the weight of '{self.path}' is {self.weight}; it must be a number above 0, how often an"
                " epoch takes each row"
            )


@dataclass(kw_only=True, slots=True)
class SuperviseConfig:
    """Which turns of a conversation are learnt, where the row itself does not say ("train", "spans").

    Raises:
        ConfigError: Nobody is learnt from.
    """

    roles: list[Role] = field(default_factory=lambda: [Role.assistant])  # whose words: system, user, assistant
    turns: Turns = Turns.all  # of these: all, or the last alone

    def __post_init__(self) -> None:
        if not self.roles:
            raise ConfigError("data.supervise.roles is empty; name at least one of system, user, assistant")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """What to learn from and what to be measured on.

    Raises:
        ConfigError: A value is out of its range.
    """

    train: list[str]  # files (jsonl, json, parquet, csv, tsv, arrow, txt), directories, hub names
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # more: +data.sources={NAME: {path: …, weight: …}}
    validation: list[str] = field(default_factory=list)  # as train
    held_out: float | None = None  # taken from train to be measured on: a share below 1, or a number of rows
    format: RowFormat = RowFormat.auto  # of rows; auto tells it from each source's fields
    columns: dict[str, str] = field(default_factory=dict)  # field: its column, as +data.columns.prompt=question
    supervise: SuperviseConfig = field(default_factory=SuperviseConfig)
    preference: OnPreference = OnPreference.refuse  # of pairs: refuse, or learn the chosen answer
    on_bad_row: OnBadRow = OnBadRow.refuse  # refuse the run, or skip the row and count it
    max_length_tokens: int = 2048
    long_rows: LongRows = LongRows.refuse
    long_audio: LongAudio = LongAudio.refuse  # sound of more than 30 s: refuse, truncate, or chunk it into several
    check_media: CheckMedia = CheckMedia.full  # before training: full decodes all images and sound, head their headers
    shuffle: bool = True
    packing: bool = True  # several rows end to end in one row of a batch, none seeing another; false: each alone
    pack_tokens: int | None = None  # the most that such a row may have; null = max_length_tokens
    max_validation_examples: int | None = None  # measure on the first ones only; null = all
    workers: int = 2  # threads that read images and sound ahead, a micro-batch each; 0 = none
    streaming: bool = False  # read while training, not before; then give trainer.max_steps, and held_out as a number
    stream_block_rows: int = 4096  # rows that are read at a time, shuffled among each other, and packed together
    token_cache: Path | None = None  # directory that keeps rows as tokens, so that texts are tokenised once
    soft_token_cache: Path | None = None  # directory that keeps what frozen towers make of images and sound

    def __post_init__(self) -> None:
        if not self.train and not self.sources:
            raise ConfigError(
                "data.train is empty, and so is data.sources; name at least one file, directory or data set of the hub"
            )
        self.check_held_out()
        if self.max_length_tokens < 2:
            raise ConfigError(
                f"data.max_length_tokens is {self.max_length_tokens}; predicting one token from another takes 2"
            )
        if self.pack_tokens is not None and self.pack_tokens < self.max_length_tokens:
            raise ConfigError(
                f"data.pack_tokens is {self.pack_tokens}, too few for a row of data.max_length_tokens"
                f" ({self.max_length_tokens}); rows are never cut to be packed: raise the one or lower the other"
            )
        if self.streaming:
            self.check_streaming()
        if self.workers < 0:
            raise ConfigError(f"data.workers is {self.workers}; it must be 0 or more")
        if self.max_validation_examples is not None and self.max_validation_examples < 1:
            raise ConfigError(f"data.max_validation_examples is {self.max_validation_examples}; it must be at least 1")

    def check_streaming(self) -> None:
        """Raise ConfigError where something needs all rows, which are not known of a stream."""
        if self.stream_block_rows < 1:
            raise ConfigError(f"data.stream_block_rows is {self.stream_block_rows}; it must be at least 1")
        if self.held_out is not None and self.held_out < 1:
            raise ConfigError(
                f"data.held_out is {self.held_out}, but with data.streaming=true it is not known how many rows there"
                " are; give a number of rows, which are the first, or data.validation"
            )
        for key in ("token_cache", "soft_token_cache"):
            if getattr(self, key) is not None:
                raise ConfigError(
                    f"data.{key} is set, but it keeps rows that are all known before training, and data.streaming is"
                    " true; leave the one or the other out"
                )

    @property
    def learnt_from(self) -> str:
        """The sources of what is learnt, for messages."""
        return ", ".join([*self.train, *(source.path for source in self.sources.values())])

    @property
    def pack_budget(self) -> int | None:
        """The most tokens that rows packed together may have; None where each is alone."""
        return (self.pack_tokens or self.max_length_tokens) if self.packing else None

    def check_held_out(self) -> None:
        """Raise ConfigError where what is to be held out is no share and no number, or not alone."""
        if self.held_out is None:
            return
        if self.validation:
            raise ConfigError(
                "data.held_out and data.validation are both given, and two sets would be measured as one; leave one out"
            )
        is_count = self.held_out >= 1 and self.held_out == round(self.held_out)
        if not (is_count or 0 < self.held_out < 1):
            raise ConfigError(
                f"data.held_out is {self.held_out}; it must be a share between 0 and 1, or a whole number of rows"
            )
