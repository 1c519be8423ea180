# SPDX-License-Identifier: Apache-2.0
"""The demo's data: nothing held out leaks into training, and other libraries read the vocabulary as we do."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from model.config import ModelConfig
from model.errors import InputError
from model.processor.chat import AUDIO_MARKS, IMAGE_MARKS, Message, Role, render
from model.processor.media import Picture, Recording
from model.processor.processor import Processor
from model.processor.tokenizer import Tokenizer
from recipes import demo_data, demo_espeak, demo_packages, demo_pictures, demo_speech, demo_text
from recipes.demo_data import ATTRIBUTION_FILE, Amounts, batches_of_one_kind, prepare
from recipes.demo_espeak import Synthesizer
from recipes.demo_speech import HEARD, MAX_SECONDS, SAMPLE_RATE_HZ, disguised, trimmed, unheard_people
from recipes.demo_text import Article, Split, read_articles
from recipes.demo_tokenizer import SPECIAL_TOKENS, train_tokenizer
from recipes.schema import register_schema
from recipes.train import TrainRecipe
from trainer.data.sources import read_conversations

NUM_ARTICLES = 400  # enough for every split and a vocabulary, in a second
TASKS = ["describe", "topic", "read", "digit", "hear", "say"]


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    """The shape of the demo's model."""
    register_schema("train", TrainRecipe)
    with initialize_config_module("conf", version_base="1.3"):
        recipe: Any = OmegaConf.to_object(compose("train", ["experiment=demo_base"]))
    return recipe.model.to_model_config()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, config: ModelConfig) -> Path:
    path = tmp_path_factory.mktemp("demo") / "data"
    amounts = Amounts(text_characters=80, synthetic_clips=40, copies=2, batch_size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_data, "read_articles", few_articles)
        prepare(path, config, amounts, courses={"base": {"describe": 2, "read": 1, "hear": 2}})
    return path


def few_articles(text_characters: int) -> list[Article]:
    return read_articles(text_characters)[:NUM_ARTICLES]


def titles(split: Split) -> set[str]:
    return {article.title for article in few_articles(80) if article.split is split}


@cache
def asked_about(directory: Path, task: str, split: str) -> frozenset[str]:
    """The questions of a task; of those about media, the media."""
    return frozenset(questions(directory, task, split))


def questions(directory: Path, task: str, split: str) -> Iterator[str]:
    for example in read_conversations([directory / task / f"{split}.jsonl"]):
        message = example.messages[0]
        media = (*message.pictures, *message.recordings)
        yield media[0].digest() if media else message.text


def test_every_article_is_in_one_split() -> None:
    sizes = {split: len(titles(split)) for split in Split}
    assert sum(sizes.values()) == NUM_ARTICLES
    assert sizes[Split.train] > sizes[Split.test] > sizes[Split.validation] > 0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("held_out", [Split.validation, Split.test])
def test_nothing_held_out_is_trained_on_in_any_task(directory: Path, task: str, held_out: Split) -> None:
    seen = {item for other in TASKS for item in asked_about(directory, other, Split.train)}
    assert asked_about(directory, task, held_out)
    assert not asked_about(directory, task, held_out) & seen


def test_no_person_heard_in_training_is_measured_on(directory: Path) -> None:
    def speakers(split: str) -> set[str]:
        rows = read_conversations([directory / "say" / f"{split}.jsonl"])
        names = (Path(str(recording.source)).stem for row in rows for recording in row.messages[0].recordings)
        return {"_".join(name.split("_")[:2]) for name in names}

    assert speakers("train") == {"voice_train", *HEARD}
    assert speakers("validation") == {"voice_validation"}
    assert speakers("test") == {"english_allison", "english_captcha", "french_june", "italian_carlo"}


def test_the_recordings_measured_on_are_not_changed(directory: Path) -> None:
    for speaker, clips in unheard_people():
        assert [clip.digit for clip in clips] == list(range(10))
        for clip in clips:
            copy = directory / "speech" / f"{speaker}_{clip.digit}{clip.path.suffix}"
            assert copy.read_bytes() == clip.path.read_bytes()


def test_general_text_does_not_name_topics(directory: Path) -> None:
    """What the adapter is to learn must not have been taught to the base."""
    questions = {example.messages[0].text for example in read_conversations([directory / "describe/train.jsonl"])}
    assert not any("Topic?" in question for question in questions)


def test_every_batch_of_a_course_is_of_one_kind(directory: Path) -> None:
    rows = [json.loads(line) for line in (directory / "base/train.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = ["images" if "images" in row else "audio" if "audio" in row else "text" for row in rows]
    batches = [set(kinds[start : start + 8]) for start in range(0, len(kinds), 8)]
    assert all(len(batch) == 1 for batch in batches)
    assert Counter(kind for batch in batches for kind in batch) == {"text": 2, "images": 1, "audio": 2}


def test_every_row_of_a_task_is_used_before_any_is_used_again() -> None:
    tasks = {"a": [{"n": n} for n in range(6)], "b": [{"n": 10 + n} for n in range(3)]}
    numbers = [row["n"] for row in batches_of_one_kind(tasks, {"a": 3, "b": 3}, batch_size=2)]
    assert sorted(number for number in numbers if number < 10) == [0, 1, 2, 3, 4, 5]
    assert sorted(number for number in numbers if number >= 10) == [10, 10, 11, 11, 12, 12]


def test_the_special_tokens_are_gemmas(directory: Path, config: ModelConfig) -> None:
    tokenizer = Tokenizer.read(directory / "tokenizer")
    assert (tokenizer.pad_id, tokenizer.bos_id) == (0, 2)
    assert [tokenizer.encode(token) for token in SPECIAL_TOKENS] == [[i] for i in range(len(SPECIAL_TOKENS))]
    for tower, marks in ((config.vision, IMAGE_MARKS), (config.audio, AUDIO_MARKS)):
        assert tower is not None
        text = marks.begin + marks.placeholder + marks.end
        assert tokenizer.encode(text) == [tower.tokens.begin_id, tower.tokens.placeholder_id, tower.tokens.end_id]


def test_few_texts_do_not_move_the_ids_of_media(tmp_path: Path, config: ModelConfig) -> None:
    train_tokenizer(["few words"], tmp_path / "few", config)
    processor = Processor.read(tmp_path / "few", config)  # which refuses marks of other ids
    assert processor.tokenizer.vocab_size == config.text.vocab_size


def test_media_are_prepared_for_the_towers(directory: Path, config: ModelConfig) -> None:
    processor = Processor.read(directory / "tokenizer", config)
    assert processor.images is not None
    assert processor.audio is not None
    assert processor.images(Picture(directory / "pictures/digit_0000.png")).shape == (3, 64, 64)
    assert config.audio is not None
    assert processor.audio.max_seconds >= MAX_SECONDS
    for clip in sorted((directory / "speech").iterdir())[::20]:
        assert processor.audio(Recording(clip)).shape[1] == config.audio.input_feat_size


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


def test_the_attribution_is_beside_the_data(directory: Path) -> None:
    text = (directory / ATTRIBUTION_FILE).read_text(encoding="utf-8")
    assert all(name in text for name in ("CC BY-SA 4.0", "Alpaydin", "eSpeak NG", "Allison Smith", "Paola Dal Zot"))


def test_the_packages_are_read_but_never_imported(directory: Path) -> None:
    assert not set(demo_packages.PINNED) & set(sys.modules)


def test_long_texts_are_cut_after_a_word() -> None:
    for cut, whole in zip(few_articles(80), few_articles(1_000_000), strict=True):
        kept = cut.text.removesuffix(" …")
        assert len(kept) <= 80
        assert cut.text == whole.text or whole.text.startswith(kept + " ")


def test_a_voice_speaks_as_fast_as_it_is_told() -> None:
    synthesizer = Synthesizer()
    slow, fast = (
        synthesizer.say("3", accent="fr", variant="m1", words_per_minute=words, pitch=50) for words in (110, 280)
    )
    assert len(slow) > 1.5 * len(fast)
    assert min(np.abs(slow).max(), np.abs(fast).max()) > 0.05


def test_no_voice_that_is_like_nobody_s_is_used() -> None:
    variants = Synthesizer().variants
    assert len(variants) > 50
    assert not {"whisper", "croak", "robosoft"} & set(variants)


def test_a_disguised_word_is_short_enough_and_fills_no_frame_with_nothing() -> None:
    samples, _ = soundfile.read(demo_speech.RECORDINGS / "french_armelle/7.flac", dtype="float32")
    assert len(trimmed(samples)) < len(samples)
    for seed in range(20):
        other = disguised(trimmed(samples), np.random.default_rng(seed))
        assert len(other) <= MAX_SECONDS * SAMPLE_RATE_HZ
        assert 0 < np.abs(other).max() <= 1
        assert (np.abs(other[: len(other) // 80 * 80]).reshape(-1, 80).max(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("module", "name", "use"),
    [
        (demo_text, "PACKAGE", lambda: read_articles(80)),
        (demo_pictures, "PACKAGE", demo_pictures.read_table),
        (demo_speech, "CAPTCHA", unheard_people),
        (demo_espeak, "PACKAGE", Synthesizer),
    ],
)
def test_without_a_package_a_user_is_told_to_install_it(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, use: Any
) -> None:
    monkeypatch.setattr(module, name, "no_such_package")
    monkeypatch.setitem(demo_packages.PINNED, "no_such_package", "no-such-package==1.0")
    with pytest.raises(InputError, match="run `make setup`, or `pip install --no-deps no-such-package"):
        use()
