# SPDX-License-Identifier: Apache-2.0
"""The demo's data: nothing held out leaks into training, and other libraries read the vocabulary as we do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from model.errors import InputError
from model.processor.chat import Message, Role, render
from model.processor.tokenizer import Tokenizer
from recipes import demo_data
from recipes.demo_data import ATTRIBUTION_FILE, SPECIAL_TOKENS, Article, Split, prepare, read_articles
from trainer.data.sources import read_conversations

NUM_ARTICLES = 400  # enough for every split and a vocabulary, in a second


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_data, "read_articles", few_articles)
        prepare(path, text_characters=80, vocab_size=600)
    return path


def few_articles(text_characters: int) -> list[Article]:
    return read_articles(text_characters)[:NUM_ARTICLES]


def titles(split: Split) -> set[str]:
    return {article.title for article in few_articles(80) if article.split is split}


def test_every_article_is_in_one_split() -> None:
    sizes = {split: len(titles(split)) for split in Split}
    assert sum(sizes.values()) == NUM_ARTICLES
    assert sizes[Split.train] > sizes[Split.test] > sizes[Split.validation] > 0


@pytest.mark.parametrize("task", ["describe", "topic"])
@pytest.mark.parametrize("held_out", [Split.validation, Split.test])
def test_no_held_out_text_is_trained_on(directory: Path, task: str, held_out: Split) -> None:
    seen = {message.text for example in read_conversations([directory / task / "train.jsonl"])
            for message in example.messages}  # fmt: skip
    questions = {example.messages[0].text for example in read_conversations([directory / task / f"{held_out}.jsonl"])}
    assert questions
    assert not questions & seen


def test_general_text_does_not_name_topics(directory: Path) -> None:
    """What the adapter is to learn must not have been taught to the base."""
    questions = {example.messages[0].text for example in read_conversations([directory / "describe/train.jsonl"])}
    assert not any("Topic?" in question for question in questions)


def test_the_special_tokens_are_gemmas(directory: Path) -> None:
    tokenizer = Tokenizer.read(directory / "tokenizer")
    assert (tokenizer.pad_id, tokenizer.bos_id) == (0, 2)
    assert [tokenizer.encode(token) for token in SPECIAL_TOKENS] == [[i] for i in range(len(SPECIAL_TOKENS))]


def test_the_vocabulary_is_not_larger_than_asked_for(directory: Path) -> None:
    assert Tokenizer.read(directory / "tokenizer").vocab_size <= 600


def test_any_text_survives_the_vocabulary(directory: Path) -> None:
    tokenizer = Tokenizer.read(directory / "tokenizer")
    text = "日本 – naïve 🦩\n\tfin."
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_reads_the_same_ids_and_turns(directory: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(directory / "tokenizer")
    messages = [Message(Role.user, "What is soap?"), Message(Role.assistant, "A salt.")]
    rendered = render(messages).text
    published = [{"role": str(message.role), "content": message.text} for message in messages]
    assert theirs.apply_chat_template(published, tokenize=False) == rendered
    assert theirs.encode(rendered, add_special_tokens=False) == Tokenizer.read(directory / "tokenizer").encode(rendered)


def test_the_attribution_is_beside_the_texts(directory: Path) -> None:
    assert "CC BY-SA 4.0" in (directory / ATTRIBUTION_FILE).read_text(encoding="utf-8")


def test_the_package_is_read_but_never_imported(directory: Path) -> None:
    assert demo_data.PACKAGE not in sys.modules


def test_long_texts_are_cut_after_a_word() -> None:
    for cut, whole in zip(few_articles(80), few_articles(1_000_000), strict=True):
        kept = cut.text.removesuffix(" …")
        assert len(kept) <= 80
        assert cut.text == whole.text or whole.text.startswith(kept + " ")


def test_without_the_package_a_user_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="make setup"):
        read_articles(80)
