# SPDX-License-Identifier: Apache-2.0
"""The tokenizer adds nothing, loses nothing, and says which characters an id stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from model.errors import CheckpointError
from model.processor.tokenizer import TOKENIZER_FILE, Tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
TEXT = "The héron 🦩 flew.\n\nIt  flew  far."


def byte_level() -> tokenizers.Tokenizer:
    """A vocabulary whose tokens are bytes and a few pairs of them."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT] * 4, trainer)
    return backend


def like_gemma() -> tokenizers.Tokenizer:
    """The published build in small: spaces become '▁', unknown characters fall back to bytes."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "T", "h", "e", "f", "l", "w", "he", "The"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[("h", "e"), ("T", "he")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(SPECIAL)
    return backend


@pytest.fixture(params=[byte_level, like_gemma])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param().save(str(tmp_path / TOKENIZER_FILE))
    return tmp_path


def test_decoding_gives_the_encoded_text_back(directory: Path) -> None:
    tokenizer = Tokenizer.read(directory)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_the_text_of_a_special_token_becomes_its_id_and_nothing_is_added(directory: Path) -> None:
    tokenizer = Tokenizer.read(directory)
    ids = tokenizer.encode("<bos><start_of_turn>The<end_of_turn>")
    assert ids[:2] == [tokenizer.bos_id, tokenizer.start_of_turn_id]
    assert ids[-1] == tokenizer.end_of_turn_id
    assert tokenizer.encode("The") == ids[2:-1]


def test_special_tokens_are_left_out_of_decoded_text(directory: Path) -> None:
    tokenizer = Tokenizer.read(directory)
    assert tokenizer.decode(tokenizer.encode("<bos>The<end_of_turn><pad>")) == "The"


def test_spans_cover_every_character_of_the_text(directory: Path) -> None:
    text = f"<bos>{TEXT}<end_of_turn>"
    encoded = Tokenizer.read(directory).encode_spans(text)
    covered = {at for start, end in encoded.offsets for at in range(start, end)}
    assert covered == set(range(len(text)))


def test_the_span_of_a_token_is_its_text(directory: Path) -> None:
    tokenizer = Tokenizer.read(directory)
    text = "The 🦩 flew<end_of_turn>"
    encoded = tokenizer.encode_spans(text)
    start, end = encoded.offsets[encoded.ids.index(tokenizer.end_of_turn_id)]
    assert text[start:end] == "<end_of_turn>"


def test_writing_copies_the_files_byte_for_byte(directory: Path, tmp_path: Path) -> None:
    (directory / "tokenizer_config.json").write_text('{"chat_template":  "…"}\n', encoding="utf-8")
    first = Tokenizer.read(directory)
    first.write(tmp_path / "copy")
    second = Tokenizer.read(tmp_path / "copy")
    assert second.fingerprint == first.fingerprint
    for name in (TOKENIZER_FILE, "tokenizer_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (directory / name).read_bytes()


def test_files_beside_it_can_be_replaced_and_the_others_stay(directory: Path, tmp_path: Path) -> None:
    (directory / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    first = Tokenizer.read(directory)
    second = first.beside({"processor_config.json": b"new"})
    assert (second.sidecar("processor_config.json"), second.sidecar("tokenizer_config.json")) == (b"new", b"{}")
    assert first.sidecar("processor_config.json") is None
    second.write(tmp_path / "copy")
    assert (tmp_path / "copy/processor_config.json").read_bytes() == b"new"
    assert second.fingerprint == first.fingerprint


def test_an_id_is_written_as_its_token(directory: Path) -> None:
    tokenizer = Tokenizer.read(directory)
    assert tokenizer.token(tokenizer.end_of_turn_id) == "<end_of_turn>"
    assert tokenizer.token(10**6) is None


def test_truncation_and_padding_stored_in_the_file_are_ignored(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / TOKENIZER_FILE))
    tokenizer = Tokenizer.read(tmp_path)
    assert len(tokenizer.encode(TEXT)) > 4
    assert tokenizer.pad_id not in tokenizer.encode("T")


def test_the_vocabulary_size_is_one_more_than_the_largest_id(directory: Path) -> None:
    content = json.loads((directory / TOKENIZER_FILE).read_text(encoding="utf-8"))
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    assert Tokenizer.read(directory).vocab_size == max(ids) + 1


def test_a_directory_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json there; copy"):
        Tokenizer.read(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / TOKENIZER_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.read(tmp_path)


def test_a_tokenizer_without_turn_marks_is_refused(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"<pad>": 0, "<bos>": 1}, merges=[]))
    backend.save(str(tmp_path / TOKENIZER_FILE))
    with pytest.raises(CheckpointError, match="no token '<start_of_turn>'"):
        Tokenizer.read(tmp_path)
