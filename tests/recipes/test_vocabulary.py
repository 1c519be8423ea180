# SPDX-License-Identifier: Apache-2.0
"""`matslice slice` keeps the tokens of a list or a corpus, says what they cover, and refuses what cannot be kept."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from model.checkpoint.saving import save
from model.config import ModelConfig
from model.errors import ConfigError, InputError
from model.processor.tokenizer import Tokenizer
from model.processor.trimming import Trimming
from recipes.cli import main
from recipes.vocabulary import VocabularyConfig, chosen_vocabulary
from tests.tiny import tiny_model
from tests.trained_tokenizer import CONFIG, TEXTS, write_files


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with both towers and a vocabulary of some 1,200 tokens."""
    directory = tmp_path_factory.mktemp("weights") / "parent"
    save(tiny_model(CONFIG), directory, extras=lambda inside: write_files(inside) and None)
    return directory


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(TEXTS[:5]))
    return path


def test_a_slice_keeps_the_tokens_of_a_corpus(
    parent: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    arguments = [f"checkpoint={parent}", f"output={small}", "slice=full", f"vocabulary.corpus=[{corpus}]"]
    assert main(["slice", *arguments, "vocabulary.max_tokens=350", "check=true"]) == 0
    told = capsys.readouterr().out
    assert "of 1,220 tokens of the text stay; they are " in told
    assert "checked: differs" in told
    config = ModelConfig.read(small)
    assert config.text.vocab_size_per_layer_input == 350
    text = TEXTS[0]
    before, after = Tokenizer.read(parent), Tokenizer.read(small)
    assert after.decode(after.encode(text)) == text
    assert len(before.encode(text)) <= len(after.encode(text)) < len(text.encode())
    lineage = json.loads((small / "slice.json").read_text())
    assert "vocabulary" in json.dumps(lineage)


def test_the_tokenizer_is_taken_apart_once(
    parent: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    read = Trimming.read
    monkeypatch.setattr(Trimming, "read", lambda directory: built.append(directory) or read(directory))
    words = [f"checkpoint={parent}", f"output={tmp_path / 'small'}", "slice=full", f"vocabulary.corpus=[{corpus}]"]
    assert main(["slice", *words]) == 0
    assert built == [parent]


def test_a_list_and_a_corpus_are_kept_together(parent: Path, corpus: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("▁class\n<mask>\n")
    console = Console(file=io.StringIO(), width=200)
    tokenizer = Tokenizer.read(parent)
    (listed,) = tokenizer.encode(" class")
    both = chosen_vocabulary(VocabularyConfig(tokens=tokens, corpus=[str(corpus)]), parent, CONFIG, console=console)
    alone = chosen_vocabulary(VocabularyConfig(tokens=tokens), parent, CONFIG, console=console)
    assert both is not None
    assert alone is not None
    assert listed in alone
    assert {*alone.kept} < {*both.kept}
    assert set(tokenizer.encode(corpus.read_text())) <= {*both.kept}
    assert isinstance(console.file, io.StringIO)
    first, second = console.file.getvalue().splitlines()
    assert first.endswith(f"they are 100.00% of the corpus' {len(tokenizer.encode(corpus.read_text())):,} tokens")
    assert second == f"vocabulary: {len(alone):,} of 1,220 tokens of the text stay"


def test_only_tokens_that_are_frequent_enough_are_kept(parent: Path, corpus: Path) -> None:
    all_of_it, frequent = (
        chosen_vocabulary(
            VocabularyConfig(corpus=[str(corpus)], min_count=count), parent, CONFIG, console=Console(quiet=True)
        )
        for count in (1, 20)
    )
    assert all_of_it is not None
    assert frequent is not None
    assert {*frequent.kept} < {*all_of_it.kept}


def test_with_neither_list_nor_corpus_all_tokens_stay(parent: Path) -> None:
    assert chosen_vocabulary(VocabularyConfig(), parent, CONFIG) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 5}, "max_tokens and min_count choose among the tokens of a corpus"),
        ({"min_count": 2}, "max_tokens and min_count choose among the tokens of a corpus"),
        ({"corpus": ["a"], "min_count": 0}, "min_count is 0"),
        ({"corpus": ["a"], "max_tokens": 0}, "max_tokens 0; both are at least 1"),
    ],
)
def test_values_without_meaning_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VocabularyConfig(**values)  # type: ignore[arg-type]


def test_a_corpus_without_text_is_refused(parent: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(InputError, match=r"corpus .*empty\.txt has no text"):
        chosen_vocabulary(VocabularyConfig(corpus=[str(empty)]), parent, CONFIG)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("vocabulary.tokens={missing}", "no file '{missing}'"),
        ("vocabulary.corpus=[{missing}]", "no file '{missing}'"),
        ("vocabulary.max_tokens=300", "choose among the tokens of a corpus"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    argument: str, message: str, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, output = tmp_path / "missing.txt", tmp_path / "small"
    arguments = [f"checkpoint={parent}", f"output={output}", "slice=full", argument.format(missing=missing)]
    assert main(["slice", *arguments]) != 0
    assert message.format(missing=missing) in " ".join(capsys.readouterr().err.split())
    assert not output.exists()
