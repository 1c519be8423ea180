# SPDX-License-Identifier: Apache-2.0
"""What a user says about data: which, and what becomes of rows that cannot be taken as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from model.errors import ConfigError
from model.processor.audio import LongAudio


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
class DataConfig:
    """What to learn from and what to be measured on.

    Raises:
        ConfigError: A value is out of its range.
    """

    train: list[str]  # JSON Lines files
    validation: list[str] = field(default_factory=list)
    max_length_tokens: int = 2048
    long_rows: LongRows = LongRows.refuse
    long_audio: LongAudio = LongAudio.refuse  # sound of more than 30 s: refuse, truncate, or chunk it into several
    check_media: CheckMedia = CheckMedia.full  # before training: full decodes all images and sound, head their headers
    shuffle: bool = True
    max_validation_examples: int | None = None  # measure on the first ones only; null = all
    workers: int = 2  # threads that read images and sound ahead, a micro-batch each; 0 = none
    soft_token_cache: Path | None = None  # directory that keeps what frozen towers make of images and sound

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("data.train is empty; name at least one JSON Lines file of conversations")
        if self.max_length_tokens < 2:
            raise ConfigError(
                f"data.max_length_tokens is {self.max_length_tokens}; predicting one token from another takes 2"
            )
        if self.workers < 0:
            raise ConfigError(f"data.workers is {self.workers}; it must be 0 or more")
        if self.max_validation_examples is not None and self.max_validation_examples < 1:
            raise ConfigError(f"data.max_validation_examples is {self.max_validation_examples}; it must be at least 1")
