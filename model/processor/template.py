# SPDX-License-Identifier: Apache-2.0
"""Whether the chat template beside a tokenizer writes a conversation as ``chat.render`` does."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.errors import InputError
from model.processor.chat import Message, Role, render
from model.processor.published import read_json
from model.processor.tokenizer import BOS, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, Tokenizer

PROBE = (Message(Role.user, "One"), Message(Role.assistant, "Two"), Message(Role.user, "Three"))


def warn_of_other_template(tokenizer: Tokenizer) -> None:
    """Warn where a model was taught another form of conversation than ours, which is used nevertheless.

    A conversation of three turns is written with both. The template is run in Jinja's sandbox.
    """
    template = template_of(tokenizer)
    if template is not None and (theirs := written(template)) != (
        ours := render(PROBE, add_generation_prompt=True).text
    ):
        found = "does not write a conversation at all" if theirs is None else f"writes {theirs[:200]!r}"
        warnings.warn(
            f"{tokenizer.origin}: the chat template beside it {found}, where matslice writes {ours!r}; a model that"
            " was taught another form answers worse, so use one tuned with Gemma's turns, or put Gemma 3n's template"
            " there if this one is wrong",
            stacklevel=3,
        )


def template_of(tokenizer: Tokenizer) -> str | None:
    """The template from whichever file has it; None if there is none, or several and no default."""
    if (content := tokenizer.sidecar(TEMPLATE_FILE)) is not None:
        return content.decode(errors="replace")
    for name in ("chat_template.json", TOKENIZER_CONFIG_FILE):
        found = read_json(tokenizer, name).get("chat_template")
        if isinstance(found, list):  # several, each with a name
            found = next((one.get("template") for one in found if one.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None


def written(template: str) -> str | None:
    """The probe as a template writes it; None where it fails."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    messages = [{"role": str(message.role), "content": message.text} for message in PROBE]
    given: dict[str, Any] = {"messages": messages, "bos_token": BOS, "eos_token": "<eos>", "raise_exception": refuse}
    try:
        return environment.from_string(template).render(**given, add_generation_prompt=True)
    except (TemplateError, InputError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return None


def refuse(message: str) -> NoReturn:
    """What templates call for conversations that they do not take."""
    raise InputError(message)
