# SPDX-License-Identifier: Apache-2.0
"""Which ids are kept, what their new numbers are, and where a config names them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import ModelConfig
from model.errors import ConfigError, SliceError
from model.slicing.vocabulary import Vocabulary, renumbered, required_ids, slice_vocabulary
from model.tower_config import Modality
from tests.tiny import tiny_config, tiny_multimodal_config

CONFIG = tiny_multimodal_config()
SIZE, WHOLE = CONFIG.text.vocab_size_per_layer_input, CONFIG.text.vocab_size  # 80 of the text, 16 of the towers
SOME = Vocabulary.of([5, 6, 7, 40], CONFIG)  # 0, 1, 2, 5, 6, 7, 40, 78, 79


@given(ids=st.sets(st.integers(0, SIZE - 1)))
def test_new_numbers_are_the_places_of_the_old_among_all_that_are_kept(ids: set[int]) -> None:
    vocabulary = Vocabulary.of(ids, CONFIG)
    kept = [old for old in range(WHOLE) if old in vocabulary]
    assert [vocabulary.new_id(old) for old in kept] == list(range(len(kept)))
    assert [vocabulary.old_id(new) for new in range(len(kept))] == kept
    assert [old for some in vocabulary.rows(WHOLE) for old in some] == kept
    assert [old for some in vocabulary.ranges for old in some] == list(vocabulary.kept)


@given(data=st.data())
def test_ranges_are_as_few_as_can_be(data: st.DataObject) -> None:
    vocabulary = Vocabulary.of(data.draw(st.sets(st.integers(0, SIZE - 1))), CONFIG)
    for ranges in (vocabulary.ranges, vocabulary.rows(WHOLE)):
        assert all(len(some) for some in ranges)
        assert all(before.stop < after.start for before, after in itertools.pairwise(ranges))


@given(data=st.data())
def test_a_choice_among_chosen_tokens_is_one_choice(data: st.DataObject) -> None:
    first = Vocabulary.of(data.draw(st.sets(st.integers(0, SIZE - 1))), CONFIG)
    middle = slice_vocabulary(CONFIG, first)
    second = Vocabulary.of(data.draw(st.sets(st.integers(0, len(first) - 1))), middle)
    both = first.then(second)
    assert slice_vocabulary(middle, second) == slice_vocabulary(CONFIG, both)
    assert [both.old_id(new) for new in range(len(both) + 16)] == [
        first.old_id(second.old_id(new)) for new in range(len(both) + 16)
    ]


def test_a_model_keeps_its_special_ids_and_the_row_that_media_read() -> None:
    assert required_ids(CONFIG).keys() == {0, 1, 2, 78, 79}
    # Not padding, but the row of the per-layer table that ids behind it read.
    moved = tiny_config(pad_token_id=7, eos_token_id=(1, 9))
    assert required_ids(moved).keys() == {0, 1, 2, 7, 9}
    assert required_ids(tiny_config(pad_token_id=7, vocab_size=SIZE)).keys() == {1, 2, 7}


@pytest.mark.parametrize(
    ("dropped", "name"),
    [(0, "pad_token_id"), (1, "eos_token_id"), (2, "bos_token_id"), (78, "boi_token_id"), (79, "boa_token_id")],
)
def test_dropping_a_special_token_is_refused(dropped: int, name: str) -> None:
    kept = tuple(old for old in SOME.kept if old != dropped)
    with pytest.raises(SliceError, match=rf"drops {dropped} \({name}\), which the model cannot do without"):
        Vocabulary(kept, SIZE).check(CONFIG)


def test_marks_of_a_tower_that_is_left_out_may_be_dropped() -> None:
    without = CONFIG.only([Modality.audio])
    vocabulary = Vocabulary(tuple(old for old in SOME.kept if old != 78), SIZE)
    published = dataclasses.replace(without, published={"model_type": "gemma3n", "boi_token_id": 78, "other": 1})
    assert slice_vocabulary(published, vocabulary).published == {"model_type": "gemma3n", "other": 1}
    with pytest.raises(SliceError, match="boa_token_id"):
        Vocabulary(vocabulary.kept[:-1], SIZE).check(without)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ((), "keeps no token"),
        ((0, 2, 1), "must be ascending"),
        ((0, 1, 1), "no repeats"),
        ((-1, 0), "keeps ids -1 to 0, but the parent's text has 0 to 79"),
        ((0, 80), "ids behind it are kept in any case"),
    ],
)
def test_ids_that_are_no_choice_of_the_texts_are_refused(kept: tuple[int, ...], message: str) -> None:
    with pytest.raises(SliceError, match=message):
        Vocabulary(kept, SIZE)


def test_a_vocabulary_of_another_parent_is_refused() -> None:
    with pytest.raises(SliceError, match="made for a text of 90 ids, but this model's has 80"):
        Vocabulary.of([3], tiny_config(vocab_size_per_layer_input=90)).check(CONFIG)
    with pytest.raises(SliceError, match=f"made for a text of 80 ids, but the sub-model has {len(SOME)}"):
        SOME.then(SOME)
    with pytest.raises(SliceError, match=r"rows for 70 ids \(vocab_size\), fewer than the text's 80"):
        Vocabulary.full(tiny_config(vocab_size=70)).check(tiny_config(vocab_size=70))


def test_the_number_of_a_dropped_token_is_not_told() -> None:
    with pytest.raises(SliceError, match="token id 3 of the parent is not kept"):
        SOME.new_id(3)


def test_every_id_of_a_config_is_renumbered() -> None:
    small = slice_vocabulary(CONFIG, SOME)
    assert (small.text.vocab_size, small.text.vocab_size_per_layer_input) == (25, 9)
    assert small.vision is not None
    assert small.audio is not None
    assert small.vision.ids == range(9, 17)
    assert small.vision.tokens.ids == (7, 10, 9)
    assert small.audio.ids == range(17, 25)
    assert small.audio.tokens.ids == (8, 18, 17)
    kept = slice_vocabulary(dataclasses.replace(CONFIG, text=dataclasses.replace(
        CONFIG.text, pad_token_id=5, bos_token_id=6, eos_token_id=(1, 40))), SOME)  # fmt: skip
    assert (kept.text.pad_token_id, kept.text.bos_token_id, kept.text.eos_token_id) == (3, 4, (1, 6))


def test_a_written_config_names_new_ids_wherever_it_named_old_ones(tmp_path: Path) -> None:
    named = {"image_token_id": 81, "eos_token_id": [1, 40], "bos_token_id": 2, "sep_token_id": None, "vocab_size": 96}
    published = CONFIG.publish() | named | {"image_token_index": 81, "ignore_index": -100}
    (tmp_path / "config.json").write_text(json.dumps(published))
    small = slice_vocabulary(ModelConfig.read(tmp_path), SOME)
    small.write(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    expected = {"image_token_id": 10, "eos_token_id": [1, 6], "bos_token_id": 2, "sep_token_id": None,
                "image_token_index": 10, "ignore_index": -100, "vocab_size": 25, "boi_token_id": 7, "boa_token_id": 8,
                "eoi_token_id": 9, "eoa_token_id": 17, "audio_token_id": 18}  # fmt: skip
    assert {name: written[name] for name in expected} == expected
    text = written["text_config"]
    assert (text["vocab_size"], text["vocab_size_per_layer_input"], text["eos_token_id"]) == (25, 9, [1, 6])
    assert (written["vision_config"]["vocab_offset"], written["audio_config"]["vocab_offset"]) == (9, 17)
    assert ModelConfig.read(tmp_path) == small


def test_a_text_only_config_is_renumbered_too(tmp_path: Path) -> None:
    config = tiny_config(eos_token_id=(1, 40))
    config.write(tmp_path)
    small = slice_vocabulary(ModelConfig.read(tmp_path), Vocabulary.of([40], config))
    small.write(tmp_path)
    assert ModelConfig.read(tmp_path) == small
    assert small.text.eos_token_id == (1, 3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"eos_token_id": [1, 40], "pad_token_id": 0}, {"eos_token_id": [1, 6], "pad_token_id": 0}),
        ({"suppress_tokens": [5, 9, 40], "top_k": 5}, {"suppress_tokens": [3, 6], "top_k": 5}),
        ({"bad_words_ids": [[5, 40], [5, 9], [81]]}, {"bad_words_ids": [[3, 6], [10]]}),
        ({"suppress_tokens": None, "force_words_ids": None}, {"suppress_tokens": None, "force_words_ids": None}),
        ({"inner": {"boi_token_id": 78}, "is_token_id": True}, {"inner": {"boi_token_id": 7}, "is_token_id": True}),
        ({"cls_token_id": -1, "tokens": 9}, {"cls_token_id": -1, "tokens": 9}),
    ],
)
def test_ids_in_a_file_are_known_by_their_fields_names(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert renumbered(old, SOME, "a file") == new


def test_a_file_that_needs_a_dropped_token_is_refused() -> None:
    with pytest.raises(SliceError, match=r"a file: inner: eos_token_id is \[1, 9\], but the vocabulary drops \[9\]"):
        renumbered({"inner": {"eos_token_id": [1, 9]}}, SOME, "a file")
    with pytest.raises(ConfigError, match="a file: sequence_bias holds token ids in a form"):
        renumbered({"sequence_bias": [[[5], 2.0]]}, SOME, "a file")
