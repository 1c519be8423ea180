# SPDX-License-Identifier: Apache-2.0
"""Conversations of lm-evaluation-harness as a checkpoint's own chat template writes them.

Source: the harness's backend for transformers, and how transformers runs templates; the code is our own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.errors import InputError
from model.processor.chat import CHAT_TEMPLATE
from model.processor.template import template_of
from model.processor.tokenizer import BOS, Tokenizer

# Put behind the last message, and looked for in what is written: without its space where messages are trimmed.
TO_GO_ON = "<the words to go on with> "


@dataclass(frozen=True)
class Chat:
    """A template."""

    text: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Chat:
        """That of a checkpoint; where there is none beside the tokenizer, Gemma 3n's."""
        return cls(template_of(tokenizer) or CHAT_TEMPLATE)

    def write(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """A conversation up to where the assistant's words go; without a prompt for these, its last ones are gone on.

        Where the template trims messages, the space at the end of these is left out, as transformers does it.

        Where the template takes no system message, it is left out.

        Raises:
            InputError: The template does not take the conversation.
        """
        try:
            return self.written(messages, add_generation_prompt=add_generation_prompt)
        except TemplateError as first:
            others = [message for message in messages if message["role"] != "system"]
            try:
                if len(others) < len(messages):
                    return self.written(others, add_generation_prompt=add_generation_prompt)
            except TemplateError:
                pass
            raise InputError(
                f"lm_eval: the checkpoint's chat template does not take a conversation ({first}); ask without"
                " apply_chat_template, or put Gemma 3n's template beside the tokenizer"
            ) from None

    def written(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """As ``write``, all messages or TemplateError."""
        wanted = [dict(message) for message in messages]
        if not add_generation_prompt and wanted:
            wanted[-1]["content"] += TO_GO_ON
        text = compiled(self.text).render(
            messages=wanted, bos_token=BOS, eos_token="<eos>", pad_token="<pad>", tools=None, documents=None,
            add_generation_prompt=add_generation_prompt,
        )  # fmt: skip
        if add_generation_prompt or not wanted:
            return text
        before, mark, after = text.rpartition(TO_GO_ON.rstrip())
        if not mark:
            raise TemplateError("it leaves out the words to go on with")
        return before if after.startswith(" ") else before.rstrip()


@functools.cache
def compiled(text: str) -> Template:
    """A template ready to run, in Jinja's sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    return environment.from_string(text)


def as_json(value: Any, indent: int | None = None) -> str:
    """Characters as they are: Jinja's own filter writes some for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def refuse(message: str) -> NoReturn:
    """What templates call for conversations that they do not take."""
    raise TemplateError(message)
