# SPDX-License-Identifier: Apache-2.0
"""A directory whose chat template writes another form than ours is told of, and others are not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from model.processor.processor import Processor
from model.processor.tokenizer import TEMPLATE_FILE, TOKENIZER_CONFIG_FILE
from tests.model.processor.test_chat import PUBLISHED
from tests.tiny_processor import CONFIG, tiny_processor

OTHERS = {
    "{{ 'CUSTOM' }}": "writes 'CUSTOM'",
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}": "One",
    "{{ raise_exception('never') }}": "does not write a conversation at all",
    "{% if %}": "does not write a conversation at all",
    "{{ messages.pop() }}": "does not write a conversation at all",  # nothing may be changed from within
    "{{ 1 / 0 }}": "does not write a conversation at all",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_processor().write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("template", OTHERS)
def test_another_template_is_told_of(template: str, directory: Path) -> None:
    (directory / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    with pytest.warns(UserWarning, match="tokenizer.json: the chat template beside it") as told:
        Processor.read(directory, CONFIG)
    assert OTHERS[template] in str(told[0].message)


@pytest.mark.parametrize("place", ["config", "named", "json"])
def test_a_template_is_found_wherever_it_is(place: str, directory: Path) -> None:
    (directory / TEMPLATE_FILE).unlink()
    said: object = "{{ 'CUSTOM' }}"
    if place == "named":
        said = [{"name": "tools", "template": "{{ 'TOOLS' }}"}, {"name": "default", "template": said}]
    name = "chat_template.json" if place == "json" else TOKENIZER_CONFIG_FILE
    (directory / name).write_text(json.dumps({"chat_template": said}), encoding="utf-8")
    with pytest.warns(UserWarning, match="writes 'CUSTOM'"):
        Processor.read(directory, CONFIG)


@pytest.mark.parametrize("template", ["ours", "published", "none"])
def test_nothing_is_said_of_gemmas_own_template(template: str, directory: Path) -> None:
    if template == "none":
        (directory / TEMPLATE_FILE).unlink()
    if template == "published":
        (directory / TEMPLATE_FILE).write_text(PUBLISHED, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Processor.read(directory, CONFIG)
