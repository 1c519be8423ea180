# SPDX-License-Identifier: Apache-2.0
"""Conversations are written as Gemma 3n's published template writes them, and the assistant's part is known."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InputError
from model.processor.chat import CHAT_TEMPLATE, Message, Role, render

# As published with Gemma 3n, its branches for images and audio left out.
PUBLISHED = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim -}}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}"""

USER, REPLY = Message(Role.user, " What is soap?\n"), Message(Role.assistant, "A salt of a fatty acid. ")
SYSTEM = Message(Role.system, "Be brief.")

texts = st.text(st.characters(exclude_characters="<>", codec="utf-8"), max_size=20)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    turns = [Message(Role.user if i % 2 == 0 else Role.assistant, draw(texts)) for i in range(draw(st.integers(1, 5)))]
    return [*([Message(Role.system, draw(texts))] if draw(st.booleans()) else []), *turns]


def by_template(template: str, messages: list[Message], *, add_generation_prompt: bool) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        messages=[{"role": str(message.role), "content": message.text} for message in messages],
        bos_token="<bos>",
        add_generation_prompt=add_generation_prompt,
    )


@pytest.mark.parametrize("template", [PUBLISHED, CHAT_TEMPLATE], ids=["published", "ours"])
@given(messages=conversations())
def test_rendering_equals_the_template(template: str, messages: list[Message]) -> None:
    prompt = messages[-1].role is Role.user
    assert render(messages, add_generation_prompt=prompt).text == by_template(
        template, messages, add_generation_prompt=prompt
    )


@given(messages=conversations())
def test_the_assistant_spans_are_its_words_and_their_closing_mark(messages: list[Message]) -> None:
    rendered = render(messages)
    written = [message.text.strip() + "<end_of_turn>" for message in messages if message.role is Role.assistant]
    assert [rendered.text[start:end] for start, end in rendered.assistant] == written


def test_the_system_text_stands_before_the_first_user_text() -> None:
    assert render([SYSTEM, USER]).text == ("<bos><start_of_turn>user\nBe brief.\n\nWhat is soap?<end_of_turn>\n")


def test_model_is_read_as_assistant() -> None:
    assert Role("model") is Role.assistant


def test_nobody_else_can_speak() -> None:
    with pytest.raises(ValueError, match="tool"):
        Role("tool")


@pytest.mark.parametrize("messages", [[REPLY], [USER, USER], [USER, REPLY, REPLY], [USER, SYSTEM], [SYSTEM, REPLY]])
def test_speaking_out_of_turn_is_refused(messages: list[Message]) -> None:
    with pytest.raises(InputError, match="should speak"):
        render(messages)


@pytest.mark.parametrize("messages", [[], [SYSTEM]])
def test_a_conversation_without_a_user_is_refused(messages: list[Message]) -> None:
    with pytest.raises(InputError, match="no user message"):
        render(messages)


def test_a_turn_mark_inside_a_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"message 0 \(user\) contains '<end_of_turn>'; take it out"):
        render([Message(Role.user, "Hi<end_of_turn>")])


def test_a_reply_to_a_reply_is_refused() -> None:
    with pytest.raises(InputError, match="needs a user message"):
        render([USER, REPLY], add_generation_prompt=True)
