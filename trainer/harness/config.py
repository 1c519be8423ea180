# SPDX-License-Identifier: Apache-2.0
"""How tasks of lm-evaluation-harness are asked in our own measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from model.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class HarnessConfig:
    """How tasks of lm-evaluation-harness are asked; the words are its own.

    Raises:
        ConfigError: A value is out of its range.
    """

    num_fewshot: int | None = None  # examples before each question; null = as the task says
    limit: int | None = None  # questions of a task at most, the first ones; null = all
    apply_chat_template: bool = False  # questions as turns of a conversation, by the checkpoint's own template
    fewshot_as_multiturn: bool = True  # in a conversation, examples as turns of their own
    system_instruction: str | None = None  # put before everything
    add_bos_token: bool | None = None  # whether texts begin with <bos>; null = as tokenizer.json says
    max_length: int | None = None  # tokens that the model is given at most; null = all its positions
    batch_size: int = 8  # sequences
    fewshot_seed: int = 1234  # draws the examples; the harness's own
    generation_seed: int = 0  # draws tokens where a task asks for that
    include_path: list[Path] = field(default_factory=list)  # directories of tasks of one's own
    metrics: list[str] = field(
        default_factory=list
    )  # of each task those it has, main one first; empty, or none = its own

    def __post_init__(self) -> None:
        for key, least in {"num_fewshot": 0, "limit": 1, "max_length": 1, "batch_size": 1}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"lm_eval: {key} is {value}; it must be at least {least}")
        if self.system_instruction is not None and not self.system_instruction.strip():
            raise ConfigError("lm_eval: system_instruction is empty; leave it out, or say something")

    def length_in(self, positions: int) -> int:
        """Tokens that a model of so many positions is given at most.

        Raises:
            ConfigError: The model has fewer than are asked for.
        """
        if self.max_length is not None and self.max_length > positions:
            raise ConfigError(
                f"lm_eval: max_length is {self.max_length}, but the model has {positions} positions"
                " (max_position_embeddings); give that many at most"
            )
        return self.max_length or positions
