# SPDX-License-Identifier: Apache-2.0
"""What a sub-model says of where it comes from: to programs in ``slice.json``, to people in its card."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.checkpoint.reader import Checkpoint
from model.checkpoint.saving import save, save_tensors
from model.config import ModelConfig
from model.errors import CheckpointError
from model.gemma3n import Gemma3n
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.lineage import CARD_FILE, LINEAGE_FILE, read_lineage, run_lengths
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.vocabulary import Vocabulary
from model.tower_config import Modality
from tests.tiny import TINY_TEXT, tiny_model, tiny_multimodal_config

WHOLE = tiny_multimodal_config()
WIDTHS = [48, 16, 16, 48, 16, 16]
SPEC = SliceSpec.resolve(SliceConfig(name="short", skip_layers=[3, 4, 5], ffn_widths=WIDTHS), TINY_TEXT)
KEPT_IDS = Vocabulary.of(range(20, 60), WHOLE)
PARTS = (Modality.text, Modality.audio)
EVERY_CUT = SubModel(SPEC, modalities=PARTS, audio_layers=(0, 2), vocabulary=KEPT_IDS)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with both towers, in several files."""
    directory = tmp_path_factory.mktemp("lineage") / "parent"
    save(tiny_model(WHOLE), directory, max_shard_bytes=90_000)
    return directory


def card_of(directory: Path) -> str:
    return (directory / CARD_FILE).read_text(encoding="utf-8")


def rows_of(card: str) -> dict[str, str]:
    """The card's table."""
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ") and len(line) > 5]
    return dict(rows)


def test_every_file_beside_it_has_its_checksum(parent: Path, tmp_path: Path) -> None:
    (parent / "chat_template.jinja").write_text("{{ messages }}")
    slice_checkpoint(parent, tmp_path / "small", SubModel(SPEC), max_shard_bytes=60_000)
    files = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir() if path.name != LINEAGE_FILE}
    assert {"config.json", "README.md", "generation_config.json", "chat_template.jinja"} < files.keys()
    assert sum(name.endswith(".safetensors") for name in files) > 1
    checksums = read_lineage(tmp_path / "small")["checksums"]
    assert checksums == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_it_says_all_that_was_cut(parent: Path, tmp_path: Path) -> None:
    slice_checkpoint(parent, tmp_path / "small", EVERY_CUT)
    lineage = read_lineage(tmp_path / "small")
    assert lineage["spec"] == {"name": "short", "kept_layers": [0, 1, 2, 6, 7, 8], "ffn_widths": WIDTHS}
    assert lineage["modalities"] == ["text", "audio"]
    assert lineage["audio_layers"] == [0, 2]
    ranges = lineage["vocabulary"]["kept"]
    assert tuple(old for start, stop in ranges for old in range(start, stop)) == KEPT_IDS.kept
    assert lineage["vocabulary"]["parent_size"] == 80
    built = Gemma3n.build(Checkpoint.open(tmp_path / "small").config, device="meta")
    assert lineage["parameters"] == sum(parameter.numel() for parameter in built.parameters())


def test_what_is_not_cut_is_null(parent: Path, tmp_path: Path) -> None:
    slice_checkpoint(parent, tmp_path / "small", SubModel(SPEC))
    lineage = read_lineage(tmp_path / "small")
    assert (lineage["audio_layers"], lineage["vocabulary"], lineage["dead_kv"]) == (None, None, "keep")
    assert lineage["parent"] == {"fingerprint": Checkpoint.open(parent).fingerprint(), "layers": 9}


def test_the_lineage_of_a_parent_is_in_that_of_its_part(parent: Path, tmp_path: Path) -> None:
    slice_checkpoint(parent, tmp_path / "small", SubModel(SPEC))
    slice_checkpoint(tmp_path / "small", tmp_path / "smaller", SubModel(SliceSpec("smaller", (0, 1, 2), (8,) * 3)))
    lineage = read_lineage(tmp_path / "smaller")
    assert lineage["parent"]["slice"] == read_lineage(tmp_path / "small")
    assert lineage["parent"]["fingerprint"] == Checkpoint.open(tmp_path / "small").fingerprint()
    assert lineage["parent"]["layers"] == 6


def test_files_do_not_depend_on_where_or_how_often_they_are_written(parent: Path, tmp_path: Path) -> None:
    for name in ("once", "again"):
        slice_checkpoint(parent, tmp_path / name, EVERY_CUT)
    once, again = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("once", "again"))
    assert once == again


@pytest.mark.parametrize("content", ["{", "[]", "3", b"\xff", "[" * 100_000])
def test_a_damaged_lineage_of_a_parent_is_named(parent: Path, tmp_path: Path, content: Any) -> None:
    slice_checkpoint(parent, tmp_path / "small", SubModel(SPEC))
    (tmp_path / "small" / LINEAGE_FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=r"small/slice\.json: .*; copy it anew"):
        slice_checkpoint(tmp_path / "small", tmp_path / "smaller", SubModel(SliceSpec("smaller", (0, 1, 2), (8,) * 3)))


def test_the_card_tells_people_what_was_cut(parent: Path, tmp_path: Path) -> None:
    slice_checkpoint(parent, tmp_path / "small", EVERY_CUT)
    card, lineage = card_of(tmp_path / "small"), read_lineage(tmp_path / "small")
    rows = rows_of(card)
    assert card.startswith("---\nlibrary_name: transformers\nlicense: gemma\n")
    assert "\n# short\n" in card
    assert rows["decoder layers"] == "6 of the parent's 9 (without 3, 4, 5)"
    assert rows["feed-forward widths"] == "1 × 48, 2 × 16, 1 × 48, 2 × 16"
    assert rows["takes in"] == "text, audio"
    assert rows["audio tower"] == "layers [0, 2] of the parent's"
    small = Checkpoint.open(tmp_path / "small").config.text.vocab_size
    assert rows["vocabulary"] == f"{small} ids of the parent's 96"
    assert rows["parameters"].startswith(f"{lineage['parameters']:,} in all, {lineage['text_parameters']:,} of")
    assert "matslice verify" in card
    assert "Gemma Terms of Use" in card


def test_the_card_is_silent_about_what_was_not_cut(parent: Path, tmp_path: Path) -> None:
    slice_checkpoint(parent, tmp_path / "whole", SubModel(SliceSpec.full(TINY_TEXT)))
    rows = rows_of(card_of(tmp_path / "whole"))
    assert rows["decoder layers"] == "9 of the parent's 9"
    assert rows["takes in"] == "text, vision, audio"
    assert not rows.keys() & {"audio tower", "vocabulary"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("google/gemma-3n-E4B-it", "google/gemma-3n-E4B-it"),
        ("/home/somebody/weights", None),
        ("./weights", None),
        ("weights/private/e4b", None),
        ("weights/e4b", None),  # is there
        ("~/weights", None),
        ("e4b", None),
        ("", None),
        (None, None),
    ],
)
def test_the_card_names_the_parent_but_no_place_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, told: str | None
) -> None:
    (tmp_path / "weights" / "e4b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(text=TINY_TEXT, published={"model_type": "gemma3n_text", "_name_or_path": name})
    save_tensors([(name, p.detach()) for name, p in tiny_model().named_parameters()], config, tmp_path / "parent")
    slice_checkpoint(tmp_path / "parent", tmp_path / "small", SubModel(SPEC))
    print_of = Checkpoint.open(tmp_path / "parent").fingerprint()[:16]
    expected = f"(`{told}`, fingerprint `{print_of}`)" if told else f"(fingerprint `{print_of}`)"
    card = card_of(tmp_path / "small")
    assert f"A sub-model of a Gemma 3n checkpoint {expected}, cut out by" in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert front.get("base_model") == told
    assert front["tags"] == ["matformer", "matslice"]
    texts = [path.read_text() for path in (tmp_path / "small").iterdir() if path.suffix in (".md", ".json")]
    assert not [text for text in texts if str(tmp_path) in text]


@pytest.mark.parametrize(("widths", "told"), [([3], ["1 × 3"]), ([3, 3, 9_000, 3], ["2 × 3", "1 × 9,000", "1 × 3"])])
def test_widths_are_told_layer_by_layer(widths: list[int], told: list[str]) -> None:
    assert run_lengths(widths) == told


def test_a_fingerprint_knows_the_tensors_and_not_their_files(parent: Path, tmp_path: Path) -> None:
    tensors = {name: parameter.detach() for name, parameter in tiny_model(WHOLE).named_parameters()}
    save_tensors(reversed(tensors.items()), WHOLE, tmp_path / "one file")
    print_of = Checkpoint.open(parent).fingerprint()
    assert Checkpoint.open(tmp_path / "one file").fingerprint() == print_of
    table = "model.language_model.embed_tokens.weight"
    first_changed = tensors[table].clone()
    first_changed[0, 0] += 1
    for number, change in enumerate(
        ({table: first_changed}, {table: tensors[table].flip(0)}, {n: t.bfloat16() for n, t in tensors.items()})
    ):
        save_tensors((tensors | change).items(), WHOLE, tmp_path / str(number))
        assert Checkpoint.open(tmp_path / str(number)).fingerprint() != print_of
