# SPDX-License-Identifier: Apache-2.0
"""One thing to learn from, before any tokenizer has seen it."""

from __future__ import annotations

from dataclasses import dataclass

from model.processor.chat import Message, Role


@dataclass(frozen=True)
class Example:
    """A conversation, and where it came from (``file:line``) for whoever has to look at it."""

    messages: tuple[Message, ...]
    where: str

    @property
    def answers(self) -> tuple[str, ...]:
        """What the assistant says, turn by turn, without space around it."""
        return tuple(message.text.strip() for message in self.messages if message.role is Role.assistant)
