# SPDX-License-Identifier: Apache-2.0
"""An epoch has each source as often as it weighs, and what is held out is never learnt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from model.errors import InputError
from tests.trainer.parts import picture_bytes, tiny_media_processor, tiny_processor, write_jsonl
from trainer.data.collate import Collator
from trainer.data.config import DataConfig, OnBadRow, OnPreference, SourceConfig
from trainer.data.dataset import read_rows
from trainer.data.inspection import inspect, without_damage
from trainer.data.loader import Loader
from trainer.data.mixture import held_out, times
from trainer.data.supervise import TokenRows

PROCESSOR = tiny_processor()


def asked(*names: str) -> list[dict[str, str]]:
    """A row for each name."""
    return [{"prompt": f"say {name}", "completion": name} for name in names]


def names(prefix: str, number: int) -> list[str]:
    """That many names."""
    return [f"{prefix}{index}" for index in range(number)]


def read(*, seed: int = 0, **values: Any) -> tuple[list[str], list[str]]:
    """What is said in the rows that are learnt and in those that are held out."""
    given: dict[str, Any] = {"train": []} | values
    train, validation = read_rows(DataConfig(**given), PROCESSOR, seed=seed)
    return texts(train), [] if validation is None else texts(validation)


def texts(found: TokenRows) -> list[str]:
    """What the rows say."""
    return [PROCESSOR.decode(row.ids.tolist()) for row in found.rows]


@given(number=st.integers(1, 50), weight=st.floats(0.01, 5), seed=st.integers(0, 9))
def test_each_row_is_taken_as_often_as_its_source_weighs(number: int, weight: float, seed: int) -> None:
    places = times(number, weight, seed=seed, name="a")
    counts = Counter(places)
    whole = int(weight)
    assert len(places) == max(whole * number + round((weight - whole) * number), 1)
    assert all(counts[place] in (whole, whole + 1) for place in range(number))
    assert places == times(number, weight, seed=seed, name="a")


def test_another_seed_draws_other_rows_of_a_share() -> None:
    drawn = {tuple(times(100, 0.5, seed=seed, name="a")) for seed in range(5)}
    assert len(drawn) == 5
    assert times(100, 0.5, seed=0, name="a") != times(100, 0.5, seed=0, name="b")


def test_sources_are_mixed_by_weight_and_none_changes_another(tmp_path: Path) -> None:
    a, b = (str(write_jsonl(tmp_path / f"{one}.jsonl", asked(*names(one, 20)))) for one in "ab")
    plain = str(write_jsonl(tmp_path / "plain.jsonl", asked("p", "q")))
    sources = {"a": SourceConfig(path=a, weight=2.0), "b": SourceConfig(path=b, weight=0.25)}
    data = DataConfig(train=[plain], sources=sources)
    counts = Counter(row.where for row in read_rows(data, PROCESSOR, seed=0)[0].rows)
    assert [counts[f"{plain}:{line}"] for line in (1, 2)] == [1, 1]
    assert [counts[f"{a}:{line}"] for line in range(1, 21)] == [2] * 20
    assert [count for place, count in counts.items() if place.startswith(b)] == [1] * 5
    found, _ = read(train=[plain], sources=sources)
    alone, _ = read(sources={"b": sources["b"]})
    assert found[-5:] == alone
    assert read(train=[plain], sources=sources) == (found, [])
    assert read(train=[plain], sources=sources, seed=1)[0] != found


def test_an_epoch_of_a_mixture_is_the_same_list_in_another_order(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", asked(*names("a", 10))))
    train, _ = read_rows(
        DataConfig(train=[], sources={"a": SourceConfig(path=path, weight=1.5)}), PROCESSOR, seed=3
    )  # fmt: skip
    loader = Loader(train.rows, batch_size=5, seed=3, collator=Collator(0))
    epochs = [
        [int(row.ids[-3]) for start in (0, 5, 10) for row in loader.take(epoch * 15 + start)] for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_each_source_may_have_a_format_and_names_of_its_own(tmp_path: Path) -> None:
    rows = [{"question": "say a", "answer": "a"}]
    sources = {
        "qa": SourceConfig(
            path=str(write_jsonl(tmp_path / "a.jsonl", rows)), columns={"prompt": "question", "completion": "answer"}
        ),
        "chat": SourceConfig(path=str(write_jsonl(tmp_path / "b.jsonl", asked("a")))),
    }
    found, _ = read(sources=sources)
    assert found[0] == found[1]


@pytest.mark.parametrize("wanted", [0.2, 0.5, 30.0])
def test_what_is_held_out_is_not_learnt_and_nothing_is_lost(tmp_path: Path, wanted: float) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", asked(*names("a", 100))))
    train, validation = read(train=[path], held_out=wanted)
    everything, _ = read(train=[path])
    assert sorted(train + validation) == sorted(everything)
    assert not set(train) & set(validation)
    assert len(validation) == wanted if wanted > 1 else abs(len(validation) - 100 * wanted) < 20
    assert read(train=[path], held_out=wanted, seed=9) == (train, validation)


def test_added_rows_move_none_to_the_other_side(tmp_path: Path) -> None:
    before = str(write_jsonl(tmp_path / "a.jsonl", asked(*names("a", 60))))
    mixed = [row for pair in zip(asked(*names("b", 60)), asked(*names("a", 60)), strict=True) for row in pair]
    after = str(write_jsonl(tmp_path / "b.jsonl", mixed))
    train, validation = read(train=[before], held_out=0.3)
    more, held = read(train=[after], held_out=0.3)
    assert set(train) <= set(more)
    assert set(validation) <= set(held)


def test_equal_rows_are_on_one_side_in_whatever_format_and_file(tmp_path: Path) -> None:
    rows = asked(*names("a", 40))
    other = [{"instruction": row["prompt"], "output": row["completion"], "id": 1} for row in rows]
    paths = [str(write_jsonl(tmp_path / f"{n}.jsonl", one)) for n, one in enumerate((rows, other))]
    for wanted in (0.5, 20.0, 21.0):
        train, validation = read(train=paths, held_out=wanted)
        assert not set(train) & set(validation)
        assert set(Counter(train).values()) == set(Counter(validation).values()) == {2}
    assert len(read(train=paths, held_out=21.0)[1]) == 22  # the last one's equal goes along


def test_held_out_rows_are_measured_once_whatever_their_source_weighs(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", asked(*names("a", 40))))
    sources = {"a": SourceConfig(path=path, weight=3.0)}
    train, validation = read(sources=sources, held_out=0.5)
    assert set(Counter(train).values()) == {3}
    assert set(Counter(validation).values()) == {1}
    assert len(read(sources=sources, held_out=0.5, max_validation_examples=4)[1]) == 4


def test_the_pieces_of_a_text_stay_together(tmp_path: Path) -> None:
    texts_ = [{"text": f"{letter} " * 60} for letter in "abcdefghij"]
    path = str(write_jsonl(tmp_path / "a.jsonl", texts_))
    data = DataConfig(train=[path], held_out=0.5, max_length_tokens=30)
    train, validation = read_rows(data, PROCESSOR, seed=0)
    assert validation is not None
    sides = [{row.where.split(" (")[0] for row in found.rows} for found in (train, validation)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 10


@pytest.mark.parametrize(("wanted", "message"), [
    (0.001, "data.held_out is 0.001, and none of 5 rows would be held out"),
    (5.0, "data.held_out is 5, but there are 5 rows; leave some to be learnt"),
])  # fmt: skip
def test_a_split_that_leaves_a_side_empty_is_refused(wanted: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        held_out([bytes([255 - n]) * 32 for n in range(5)], wanted)


def test_bad_rows_are_skipped_and_counted_if_so_wished(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [*asked("a"), "{", *asked("b"), {"prompt": "c"}]))
    train, _ = read_rows(DataConfig(train=[path], on_bad_row=OnBadRow.skip), PROCESSOR, seed=0)
    assert [row.where for row in train.rows] == [f"{path}:1", f"{path}:3"]
    assert train.num_bad == 2
    assert [fault.split(": ")[0] for fault in train.faults] == [f"{path}:2", f"{path}:4"]


def test_rows_with_damaged_media_are_skipped_and_counted_if_so_wished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = picture_bytes(1)
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "bad.png").write_bytes(good[:60] + b"\0\0\0\0" + good[64:])
    rows = [asked(name)[0] | {"prompt": "<image_soft_token>", "images": [f"{name}.png"]} for name in ("good", "bad")]
    path = str(write_jsonl(tmp_path / "a.jsonl", [*rows, *asked("c")]))
    data = DataConfig(train=[path], on_bad_row=OnBadRow.skip)
    found, _ = read_rows(data, tiny_media_processor(), seed=0)
    console = Console(stderr=True, width=500)
    with pytest.raises(InputError, match=r"1 of 3 rows cannot be used.*\n.*a\.jsonl:2: messages: image .*bad\.png"):
        inspect(found.rows, data.check_media, console=console)
    digests = inspect(found.rows, data.check_media, console=console, on_bad_row=OnBadRow.skip)
    left = without_damage(found, digests)
    assert [row.where for row in left.rows] == [f"{path}:1", f"{path}:3"]
    assert left.num_bad == 1
    assert "a.jsonl:2: messages: image" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [0.5, 10.0])
def test_an_answer_beside_several_rejected_ones_is_on_one_side(tmp_path: Path, wanted: float) -> None:
    pairs = [row | {"chosen": row.pop("completion")} for row in asked(*names("a", 20))]
    rows = [pair | {"rejected": other} for pair in pairs for other in ("no", "never", "not at all")]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    train, validation = read(train=[path], held_out=wanted, preference=OnPreference.chosen)
    assert not set(train) & set(validation)
    assert set(Counter(train).values()) == set(Counter(validation).values()) == {3}
