# SPDX-License-Identifier: Apache-2.0
"""A tokenizer that loses tokens: what it keeps it reads as before, the rest falls back to bytes, all ids agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from model.config import ModelConfig
from model.errors import CheckpointError, SliceError
from model.processor.chat import Message, Role
from model.processor.media import Picture
from model.processor.processor import Processor
from model.processor.selection import choose, tokens_from_corpus
from model.processor.tokenizer import TOKENIZER_FILE, Tokenizer
from model.processor.trimming import Trimming, trimmed_files
from model.slicing.vocabulary import Vocabulary, slice_vocabulary
from tests.tiny_processor import noise, vocabulary
from tests.trained_tokenizer import CONFIG, GENERATION, NUM_PIECES, TEXTS, trained_vocabulary, write_files

UNSEEN = "Der héron 🦩\tfliegt über  Ägypten.\r\n\n日本語"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parent")
    write_files(directory)
    return directory


@cache
def whole() -> Tokenizer:
    return Tokenizer(trained_vocabulary(), {})


@cache
def chosen(max_tokens: int | None = None) -> Vocabulary:
    """The tokens of a few of the texts."""
    path = Path(__file__)
    counts = tokens_from_corpus([path], whole())
    trimming = Trimming(trained_vocabulary(), {})
    return choose(counts.ordered(), whole(), trimming, CONFIG, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def child(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("child")
    for name, content in trimmed_files(parent, chosen(), media=True).items():
        (directory / name).write_bytes(content)
    slice_vocabulary(ModelConfig.read(parent), chosen()).write(directory)
    return directory


def test_a_text_of_kept_pieces_has_the_same_pieces_by_their_new_ids(child: Path) -> None:
    small, vocabulary = Tokenizer.read(child), chosen()
    covered = [text for text in [*TEXTS, Path(__file__).read_text()] if set(whole().encode(text)) <= {*vocabulary.kept}]
    assert len(covered) > 10
    for text in covered:
        assert small.encode(text) == [vocabulary.new_id(old) for old in whole().encode(text)]


def test_every_other_text_comes_back_unchanged(child: Path) -> None:
    small = Tokenizer.read(child)
    assert not set(whole().encode(TEXTS[1])) <= {*chosen().kept}
    for text in [*TEXTS[:40], UNSEEN, "x<start_of_turn>y"]:
        assert small.decode(small.encode(text)) == whole().decode(whole().encode(text))


def test_a_word_that_lost_its_token_becomes_smaller_pieces(child: Path) -> None:
    small, vocabulary = Tokenizer.read(child), chosen()
    tokens = [(old, whole().token(old) or "") for old in range(NUM_PIECES) if old not in vocabulary]
    _old, token = next((old, token) for old, token in tokens if len(token) > 2 and whole().encode(token) == [old])
    assert len(small.encode(token)) > 1
    assert small.decode(small.encode(token)) == token.replace("▁", " ")


def test_each_token_has_the_number_that_the_model_gives_it(child: Path) -> None:
    small, vocabulary = Tokenizer.read(child), chosen()
    for old in range(CONFIG.text.vocab_size):
        if old in vocabulary:
            assert small.token(vocabulary.new_id(old)) == whole().token(old)
    content = json.loads((child / TOKENIZER_FILE).read_bytes())
    assert content["post_processor"]["special_tokens"]["<bos>"]["ids"] == [small.bos_id]
    backend = tokenizers.Tokenizer.from_file(str(child / TOKENIZER_FILE))
    assert backend.encode("x").ids[0] == small.bos_id


def test_rows_that_no_token_has_are_dropped() -> None:
    assert all(old < NUM_PIECES for old in chosen().kept)
    assert CONFIG.text.vocab_size_per_layer_input > NUM_PIECES


def test_files_beside_the_tokenizer_name_the_new_ids(parent: Path, child: Path) -> None:
    vocabulary = chosen()
    before, after = (json.loads((place / "added_tokens.json").read_text()) for place in (parent, child))
    assert after == {token: vocabulary.new_id(old) for token, old in before.items()}
    before, after = (json.loads((place / "tokenizer_config.json").read_text()) for place in (parent, child))
    decoder = {str(vocabulary.new_id(int(old))): token for old, token in before["added_tokens_decoder"].items()}
    assert after == before | {"added_tokens_decoder": decoder}
    assert (child / "special_tokens_map.json").read_bytes() == (parent / "special_tokens_map.json").read_bytes()
    assert (child / "chat_template.jinja").read_bytes() == (parent / "chat_template.jinja").read_bytes()
    written = json.loads((child / "generation_config.json").read_text())
    assert written == GENERATION | {"suppress_tokens": [3], "bad_words_ids": [[5, 6]]}
    for name in ("processor_config.json", "preprocessor_config.json"):
        assert json.loads((child / name).read_text()) == json.loads((parent / name).read_text())


def test_a_smaller_processor_prepares_conversations_as_the_whole_one(parent: Path, child: Path) -> None:
    big, small = (Processor.read(place, ModelConfig.read(place)) for place in (parent, child))
    asked = [Message(Role.user, (Picture(noise("RGB")), "import pytest"))]
    said = [Message(Role.user, "from pathlib import Path"), Message(Role.assistant, "return"), *asked]
    for messages in (asked, said):
        ids = big.encode(messages, add_generation_prompt=True)
        assert small.encode(messages, add_generation_prompt=True) == [chosen().new_id(old) for old in ids]


def test_the_smallest_vocabulary_can_write_every_conversation(parent: Path) -> None:
    trimming = Trimming.read(parent)
    smallest = choose([], whole(), trimming, CONFIG)
    assert len(smallest) < 300
    small = Tokenizer(trimming.trimmed(smallest), {})
    assert small.encode("<start_of_turn>user\n")[1:] == [
        smallest.new_id(old) for old in whole().encode("<start_of_turn>user\n")[1:]
    ]
    assert small.decode(small.encode(UNSEEN)) == UNSEEN


def test_all_tokens_kept_is_the_same_tokenizer() -> None:
    trimming = Trimming(trained_vocabulary(), {})
    assert json.loads(trimming.trimmed(Vocabulary.full(CONFIG))) == json.loads(trained_vocabulary())


def test_trimming_twice_is_trimming_once_by_both_choices() -> None:
    trimming, first = Trimming(trained_vocabulary(), {}), chosen()
    middle = Trimming(trimming.trimmed(first), {})
    wanted = middle.closed(range(0, len(first), 2)) | middle.required()
    second = Vocabulary(tuple(sorted(number for number in wanted if number < len(first))), len(first))
    assert len(second) < len(first)
    assert middle.trimmed(second) == trimming.trimmed(first.then(second))


def test_a_vocabulary_of_byte_symbols_keeps_all_of_them() -> None:
    trimming = Trimming(vocabulary(), {})
    whole = Tokenizer(vocabulary(), {})
    some = Vocabulary(tuple(sorted(old for old in trimming.required() if old < 320)), 320)
    assert len(some) < 280
    small = Tokenizer(trimming.trimmed(some), {})
    assert small.decode(small.encode(UNSEEN)) == UNSEEN == whole.decode(whole.encode(UNSEEN))


def test_files_of_media_are_left_out_where_no_media_are_taken(parent: Path) -> None:
    assert "processor_config.json" in trimmed_files(parent, chosen(), media=True)
    assert (
        not {"processor_config.json", "preprocessor_config.json"} & trimmed_files(parent, chosen(), media=False).keys()
    )


def test_a_compiled_vocabulary_is_left_out_and_it_is_said(parent: Path, tmp_path: Path) -> None:
    (tmp_path / TOKENIZER_FILE).write_bytes(trained_vocabulary())
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.warns(UserWarning, match=r"tokenizer\.model is not carried"):
        assert trimmed_files(tmp_path, chosen(), media=True).keys() == {TOKENIZER_FILE}
    (tmp_path / TOKENIZER_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"there is only tokenizer\.model; copy"):
        Trimming.read(tmp_path)


def test_a_directory_without_a_tokenizer_has_nothing_to_trim(tmp_path: Path) -> None:
    assert trimmed_files(tmp_path, chosen(), media=True) == {}
    with pytest.raises(CheckpointError, match=r"tokenizer\.json, and there is none; copy"):
        Trimming.read(tmp_path)


@pytest.mark.parametrize("token", ["<mask>", "<0x41>", "<end_of_turn>"])
def test_dropping_what_must_stay_is_refused(token: str) -> None:
    trimming = Trimming(trained_vocabulary(), {})
    number = trimming.ids[token]
    lacking = Vocabulary(tuple(old for old in chosen().kept if old != number), chosen().parent_size)
    with pytest.raises(SliceError, match=rf"drops '{token}' \({number}\) of tokenizer\.json; added tokens, bytes"):
        trimming.trimmed(lacking)


def test_dropping_what_a_kept_token_is_built_of_is_refused() -> None:
    trimming = Trimming(trained_vocabulary(), {})
    needed = max(trimming.closed([trimming.ids["▁the"]]) - {trimming.ids["▁the"]})
    lacking = Vocabulary(
        tuple(sorted({*chosen().kept, *trimming.closed([trimming.ids["▁the"]])} - {needed})), chosen().parent_size
    )
    with pytest.raises(SliceError, match=rf"\({needed}\).* of which kept tokens are built"):
        trimming.trimmed(lacking)


def test_dropping_a_token_that_only_a_file_beside_it_adds_is_refused(parent: Path) -> None:
    dropped = next(old for old in range(NUM_PIECES) if old not in chosen())
    for sidecars in (
        {"added_tokens.json": json.dumps({"<new>": dropped}).encode()},
        {"tokenizer_config.json": json.dumps({"added_tokens_decoder": {str(dropped): {}}}).encode()},
    ):
        with pytest.raises(SliceError, match=rf"\({dropped}\) of tokenizer\.json; added tokens"):
            Trimming(trained_vocabulary(), sidecars).check(chosen())


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "Expecting"), (b"[]", "no JSON object"), (b"[" * 100_000, "nested too")]
)
def test_files_that_cannot_be_read_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: not JSON that can be read \({message}"):
        trimmed_files(tmp_path, chosen(), media=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": ["a"], "merges": []}}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 1}]}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "u"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"one": {}}}),
        ("added_tokens.json", {"<new>": None}),
    ],
)
def test_files_of_another_shape_are_refused(name: str, content: dict[str, Any], tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: it, or .* take the files that came with the weights"):
        trimmed_files(tmp_path, chosen(), media=True)


def changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    content = json.loads(trained_vocabulary())
    change(content)
    return json.dumps(content).encode()


def pad(content: dict[str, Any]) -> None:
    content["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 300, "pad_type_id": 0,
        "pad_token": "x",
    }  # fmt: skip


def rob(content: dict[str, Any]) -> None:
    content["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "RobertaProcessing", "sep": ["a", 300], "cls": ["<bos>", 2], "trim_offsets": True,
             "add_prefix_space": True}
        ],
    }  # fmt: skip


@pytest.mark.parametrize("change", [pad, rob])
def test_ids_that_the_file_uses_for_other_things_stay_and_are_renumbered(
    change: Callable[[dict[str, Any]], None],
) -> None:
    trimming = Trimming(changed(change), {})
    assert 300 in trimming.required()
    small = choose([], whole(), trimming, CONFIG)
    assert small.new_id(300) < 300
    content = json.loads(trimming.trimmed(small))
    found = content["padding"]["pad_id"] if change is pad else content["post_processor"]["processors"][0]["sep"][1]
    assert found == small.new_id(300)


def test_added_tokens_keep_their_ids_where_rows_without_token_are_before_them() -> None:
    # Kept rows that no token has: the library would number what is added behind the tokens, not behind the rows.
    def apart(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            if token["id"] >= NUM_PIECES:
                content["model"]["vocab"].pop(token["content"])

    content = json.loads(changed(apart))
    numbers = sorted(
        token["id"] for token in content["added_tokens"] if token["content"] not in content["model"]["vocab"]
    )
    for place, number in enumerate(numbers):  # as the library reads such a file
        next(token for token in content["added_tokens"] if token["id"] == number)["id"] = NUM_PIECES + place
    trimming = Trimming(json.dumps(content).encode(), {})
    smallest = choose([], whole(), trimming, CONFIG)
    for extra in ((), (NUM_PIECES + 10,)):
        kept = Vocabulary(tuple(sorted({*smallest.kept, *extra})), NUM_PIECES + 20)
        found = tokenizers.Tokenizer.from_buffer(trimming.trimmed(kept))
        assert found.token_to_id("<end_of_image>") == kept.new_id(trimming.ids["<end_of_image>"])
