# SPDX-License-Identifier: Apache-2.0
"""``matslice data preview``: rows as they are trained on, the lengths of all, and what cannot be used."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recipes.cli import main
from recipes.data_preview import DataPreviewRecipe, Shown, lines_of
from recipes.data_rendering import BEGIN_LEARNT, END_LEARNT, Kind, rendered, runs_of, tokens_of, visible
from tests.trainer.parts import (
    mixed,
    picture_bytes,
    rows,
    spelling,
    tiny_media_processor,
    tiny_media_tokenizer,
    write_jsonl,
)
from trainer.data.config import DataConfig, LongRows, OnBadRow, OnPreference
from trainer.data.dataset import read_rows
from trainer.data.lengths import Spread, bars
from trainer.data.pack import pack_rows

Captured = pytest.CaptureFixture[str]
BAD = "messages: found a string ('none'); expected a list of turns"
WORDS = ("abc", "hello", "you", "z" * 60)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer and nothing else."""
    directory = tmp_path_factory.mktemp("tokenizer") / "tiny"
    tiny_media_tokenizer().write(directory)
    return directory


@pytest.fixture(scope="session")
def spoken_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of two exchanges; the sixth line is none."""
    turns = [[("user", "say it"), ("assistant", word), ("user", "and"), ("assistant", "b")] for word in WORDS]
    chats: list[Any] = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in turns]
    return write_jsonl(tmp_path_factory.mktemp("data") / "chat.jsonl", [*chats, chats[0], {"messages": "none"}])


@pytest.fixture
def preview(tokenizer: Path, spoken_rows: Path, capsys: Captured) -> Callable[..., str]:
    """What is printed."""

    def run(*words: str, status: int = 0) -> str:
        given = [] if any(word.startswith("data.train") for word in words) else [f"data.train=[{spoken_rows}]"]
        of = [] if any(word.startswith(("tokenizer", "checkpoint")) for word in words) else [f"tokenizer={tokenizer}"]
        assert main(["data", "preview", *given, *of, *words]) == status
        out, err = capsys.readouterr()
        return err if status else out

    return run


def told(preview: Callable[..., str], *words: str) -> dict[str, Any]:
    return json.loads(preview(*words, "json=true"))


def trained(spoken_rows: Path, **changes: Any) -> Any:
    """What a run would take."""
    data = DataConfig(
        **{"train": [str(spoken_rows)], "on_bad_row": OnBadRow.skip, "long_rows": LongRows.skip} | changes
    )
    return read_rows(data, tiny_media_processor(), seed=0)[0]


def test_what_is_shown_as_learnt_is_what_is_trained_on(preview: Callable[..., str], spoken_rows: Path) -> None:
    shown = told(preview, "rows=9")["rows"]
    for one, row in zip(shown, trained(spoken_rows).rows, strict=True):
        assert one["where"] == row.where
        assert [token["id"] for token in one["tokens"]] == row.ids.tolist()
        assert [token["supervised"] for token in one["tokens"]] == row.supervised.tolist()
        assert one["supervised"] == int(row.supervised.sum())
        assert {token["role"] for token in one["tokens"] if token["supervised"]} == {"assistant"}
        assert one["fate"] == "trained on"


def test_without_colours_marks_stand_around_what_is_learnt(preview: Callable[..., str], spoken_rows: Path) -> None:
    out = preview("rows=1")
    shown = out[: out.index("rows")].replace(" ", "")  # this vocabulary's decoder puts spaces between characters
    assert re.findall(f"{BEGIN_LEARNT}(.*?){END_LEARNT}", shown) == ["abc<end_of_turn>", "b<end_of_turn>"]
    assert "<bos><start_of_turn>user" in shown
    assert "\x1b" not in out
    assert out.startswith(f"{spoken_rows}:1: ")


def test_the_last_turn_alone(preview: Callable[..., str]) -> None:
    (one,) = told(preview, "rows=1", "data.supervise.turns=last")["rows"]
    assert "".join(token["token"] for token in one["tokens"] if token["supervised"]) == "b<end_of_turn>"


def test_on_a_terminal_what_is_learnt_has_a_colour() -> None:
    processor, (row,) = tiny_media_processor(), rows(spelling(1), tiny_media_processor())
    shown = Shown(row.where, tokens_of(row, processor))
    recipe = DataPreviewRecipe(data=DataConfig(train=["a.jsonl"]))
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system="standard", highlight=False)
    for line in lines_of(shown, recipe, processor, console):
        console.print(line, soft_wrap=True)
    assert BEGIN_LEARNT not in written.getvalue()
    learnt = re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", written.getvalue(), re.DOTALL)
    assert "".join(learnt).replace(" ", "") == "abcdefghi"[:1] + "<end_of_turn>"


def test_data_steer_no_terminal() -> None:
    processor = tiny_media_processor()
    (row,) = rows(spelling(1), processor)
    assert visible("a\x1b[2Jb\rc\x9bd\n") == "a\\x1b[2Jb\\x0dc\\x9bd\n"
    assert rendered(tokens_of(row, processor), processor, colour=False).plain.count("\x1b") == 0


def test_media_are_told_in_a_word() -> None:
    processor = tiny_media_processor()
    for example, row in zip(mixed(5), rows(mixed(5), processor), strict=True):
        runs = [run for run in runs_of(tokens_of(row, processor), processor) if run.kind is Kind.medium]
        vision, audio = processor.config.vision, processor.config.audio
        assert vision is not None
        assert audio is not None
        expected = [f"<image {vision.tokens.per_item} soft tokens>"] * len(row.pictures)
        expected += [f"<audio {audio.tokens.per_item} soft tokens>"] * len(row.recordings)
        assert sorted(run.text for run in runs) == sorted(expected), example.where
        assert not any(run.supervised for run in runs)


def test_rows_with_media_of_a_checkpoint(preview: Callable[..., str], media_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    turns = [{"role": "user", "content": "see <image_soft_token>"}, {"role": "assistant", "content": "a"}]
    data = write_jsonl(tmp_path / "seen.jsonl", [{"messages": turns, "images": ["a.png"]}])
    out = preview(f"checkpoint={media_weights}", f"data.train=[{data}]")
    assert re.search(r"s e e *\n *\n *<image [1-9]\d* soft tokens> *\n *\n", out)
    assert "1 row, 1 with images or sound" in out


def test_no_weights_are_read(preview: Callable[..., str], weights: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in weights.iterdir():
        if file.suffix != ".safetensors" and "index" not in file.name:
            (bare / file.name).write_bytes(file.read_bytes())
    assert not list(bare.glob("*.safetensors"))
    assert "trained on: 5 rows" in preview(f"checkpoint={bare}")
    assert "trained on: 5 rows" in preview(f"tokenizer={bare}")


def test_one_row_by_the_number_that_messages_have(preview: Callable[..., str], spoken_rows: Path) -> None:
    (one,) = told(preview, "row=4", "shown_tokens=2")["rows"]
    assert one["where"] == f"{spoken_rows}:4"
    assert one["length"] > 100
    assert "…" not in preview("row=4", "shown_tokens=2")
    assert f"{spoken_rows}:6: (cannot be used: {BAD})" in preview("row=6")
    assert "row: none of 6 rows has the number 7" in preview("row=7", status=2)


def test_the_middle_of_a_long_row_is_left_out(preview: Callable[..., str]) -> None:
    out = preview("rows=1", "shown_tokens=10")
    (one,) = told(preview, "rows=1")["rows"]
    assert f"… {one['length'] - 10} tokens …" in out
    assert out.index("<bos>") < out.index("tokens …") < out.index("<end_of_turn>")


def test_every_token_can_be_listed(preview: Callable[..., str]) -> None:
    (one,) = told(preview, "rows=1")["rows"]
    lines = preview("rows=1", "tokens=true").splitlines()
    for place, token in enumerate(one["tokens"]):
        star = "*" if token["supervised"] else " "
        written = repr(token["token"])[1:-1]
        assert f"{place:>6} {token['id']:>7} {star} {token['role']:<10} {written}".rstrip() in map(str.rstrip, lines)


@pytest.mark.parametrize("long_rows", ["skip", "truncate", "refuse"])
def test_the_report_counts_as_training_does(preview: Callable[..., str], spoken_rows: Path, long_rows: str) -> None:
    report = told(preview, "data.max_length_tokens=60", f"data.long_rows={long_rows}", "data.on_bad_row=skip")["report"]
    lengths = [len(row.ids) for row in trained(spoken_rows).rows]
    assert report["rows"] == 6
    assert report["rows_bad"] == 1
    assert report["tokens"]["total"] == sum(lengths)
    assert (report["tokens"]["min"], report["tokens"]["max"]) == (min(lengths), max(lengths))
    assert report["rows_too_long"] == sum(length > 60 for length in lengths) > 0
    if long_rows == "refuse":
        assert report["rows_trained_on"] == sum(length <= 60 for length in lengths)
        return
    found = trained(spoken_rows, max_length_tokens=60, long_rows=LongRows(long_rows))
    assert report["rows_trained_on"] == len(found.rows)
    assert report["rows_truncated"] == found.num_truncated
    assert report["trained_tokens"] == sum(len(row.ids) for row in found.rows)
    assert report["supervised_tokens"] == sum(int(row.supervised[1:].sum()) for row in found.rows)


def test_a_person_is_told_all_of_it(preview: Callable[..., str], spoken_rows: Path) -> None:
    out = preview("data.max_length_tokens=60", "data.long_rows=truncate", "rows=0")
    for words in (
        "6 rows", "min 48", "median", "p99", "█",
        "longer than 60 tokens (data.max_length_tokens): ", "data.long_rows=truncate: 1 cut",
        "are learnt", "1 row cannot be used (data.on_bad_row=refuse: a run is refused)",
        f"{spoken_rows}:6: {BAD}",
    ):  # fmt: skip
        assert words in out, words
    assert "a run with 1 of them is refused" in preview("data.max_length_tokens=60", "rows=0")


def test_sources_stand_beside_each_other(preview: Callable[..., str], spoken_rows: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "a text " * 40}, {"text": "b"}])
    words = (
        "data.max_length_tokens=100",
        "data.long_rows=skip",
        f"+data.sources={{texts: {{path: {other}, weight: 2.5}}}}",
    )
    report = told(preview, *words)["report"]
    assert list(report["sources"]) == [str(spoken_rows), "texts"]
    texts = report["sources"]["texts"]
    assert (texts["rows"], texts["rows_too_long"], texts["rows_trained_on"], texts["weight"]) == (2, 1, 4, 2.5)
    assert sum(one["trained_tokens"] for one in report["sources"].values()) == report["trained_tokens"]
    out = preview(*words)
    assert "of an epoch" in out
    assert re.search(r"texts +│ +2\.5", out)


def test_how_full_packs_would_be_is_told(preview: Callable[..., str], spoken_rows: Path) -> None:
    trained_on = trained(spoken_rows).rows
    packs = pack_rows(trained_on, budget=200, seed=0, shuffle=True)
    told_packs = told(preview, "data.pack_tokens=200", "data.max_length_tokens=200")["report"]["packs"]
    assert told_packs == {"packs": len(packs), "tokens": 200, "share_filled": packs.share_filled}
    assert len(packs) < len(trained_on)
    out = preview("data.pack_tokens=200", "data.max_length_tokens=200")
    assert f"packs of up to 200 tokens: {len(packs)}, which are {packs.share_filled:.1%} full" in out
    assert told(preview, "data.packing=false")["report"]["packs"] is None


def test_a_long_text_is_told_by_its_pieces(preview: Callable[..., str], tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("a text " * 40, encoding="utf-8")
    (one,) = told(preview, f"data.train=[{text}]", "data.max_length_tokens=100")["rows"]
    assert one["fate"] == "of 281 tokens, more than data.max_length_tokens=100: cut into 3 pieces"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["row=0"], "row is 0; it must be at least 1"),
        (["rows=-1"], "rows is -1; it must be at least 0"),
        (["data.train=[nowhere.jsonl]"], "no file 'nowhere.jsonl'"),
        (["tokenizer=nowhere"], "nowhere: no tokenizer.json there"),
        (["dtaa.train=[a]"], "dtaa"),
    ],
)
def test_what_cannot_be_is_refused(preview: Callable[..., str], words: list[str], message: str) -> None:
    refused = preview(*words, status=2)
    assert refused.startswith("error: ")
    assert message in refused


def test_neither_a_checkpoint_nor_a_tokenizer(capsys: Captured) -> None:
    assert main(["data", "preview", "data.train=[a.jsonl]"]) == 2
    assert "error: data preview: neither checkpoint nor tokenizer is given; say tokeni" in capsys.readouterr().err
    assert main(["data", "preview"]) == 2
    assert "data preview: must be given: data.train=…; see matslice data preview --help" in capsys.readouterr().err


def test_half_a_command_is_told_the_whole_one(capsys: Captured) -> None:
    for words in (["data"], ["data", "preveiw"], ["data", "a=1"]):
        assert main(words) == 2
        assert "did you mean 'data preview'?" in capsys.readouterr().err


def test_lengths_in_a_few_numbers_are_those_of_rows() -> None:
    spread = Spread.of([5, 1, 2, 3, 4, 100])
    assert (spread.min, spread.median, spread.p90, spread.p99, spread.max) == (1, 3, 100, 100, 100)
    assert (spread.num_rows, spread.total) == (6, 115)
    assert Spread.of(list(range(1, 101))).p90 == 90
    assert Spread.of([7]).median == 7


def test_bars_hold_every_row_once() -> None:
    for lengths in ([1], [16, 17, 32, 33, 5000], [40] * 3, [1000, 1001], list(range(1, 300))):
        found = list(bars(lengths))
        assert sum(bar.num_rows for bar in found) == len(lengths)
        assert found[0].num_rows > 0
        assert found[-1].num_rows > 0
        for bar in found:
            assert bar.num_rows == sum(bar.first <= length <= bar.last for length in lengths)
        assert all(left.last + 1 == right.first for left, right in pairwise(found))


def test_both_sides_of_a_pair_are_looked_at_as_in_training(preview: Callable[..., str], tmp_path: Path) -> None:
    pairs = [{"prompt": "a", "chosen": "b", "rejected": word} for word in ("c", "<start_of_turn>")]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    found = json.loads(preview(f"data.train=[{path}]", "data.preference=chosen", "json=true"))
    assert found["report"]["rows_bad"] == 1
    assert found["report"]["bad_rows"][0]["where"] == f"{path}:2"
    data = DataConfig(train=[str(path)], preference=OnPreference.chosen, on_bad_row=OnBadRow.skip)
    train, _ = read_rows(data, tiny_media_processor(), seed=0)
    assert train.num_bad == 1


@pytest.mark.parametrize("wanted", [0.4, 7.0])
def test_what_is_held_out_is_told_and_lies_in_no_pack(
    preview: Callable[..., str], tmp_path: Path, wanted: float
) -> None:
    turns = [{"prompt": f"say {number}", "completion": "a" * (number % 5 + 1)} for number in range(30)]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", part) for name, part in (("a", turns[:20]), ("b", turns[20:]))]
    data = DataConfig(train=list(map(str, paths)), held_out=wanted, max_length_tokens=40)
    train, validation = read_rows(data, tiny_media_processor(), seed=0)
    assert validation is not None
    words = [f"data.train=[{paths[0]},{paths[1]}]", f"data.held_out={wanted}", "data.max_length_tokens=40"]
    report = json.loads(preview(*words, "json=true"))["report"]
    assert report["rows_held_out"] == len(validation.rows)
    assert (report["rows"], report["rows_trained_on"]) == (30, len(train.rows))
    assert report["trained_tokens"] == sum(len(row.ids) for row in train.rows)
    assert report["supervised_tokens"] == sum(int(row.supervised[1:].sum()) for row in train.rows)
    assert sum(one["rows_trained_on"] for one in report["sources"].values()) == len(train.rows)
    assert report["packs"]["packs"] == len(pack_rows(train.rows, budget=40, seed=0, shuffle=True))
    assert f"held out: {len(validation.rows)} rows, measured on" in preview(*words)


def test_that_nothing_can_be_held_out_is_told_beside_what_is_wrong_with_rows(
    preview: Callable[..., str], tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    out = preview(f"data.train=[{path}]", "data.held_out=2")
    assert "a run is refused: data.held_out is 2, but there are 1 rows" in out
    assert f"{path}:2: completion: found none" in out
    assert "1 row cannot be used" in preview(f"data.train=[{write_jsonl(path, [{'text': ''}])}]", "data.held_out=0.5")
