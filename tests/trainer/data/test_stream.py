# SPDX-License-Identifier: Apache-2.0
"""A stream is a function of data, seed and position: whoever reads it, from wherever, gets the same batches."""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from collections.abc import Collection
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import CheckpointError, InputError
from tests.trainer.parts import picture_bytes, tiny_media_processor, tiny_processor, write_jsonl
from trainer.data.collate import Collator
from trainer.data.config import DataConfig, LongRows, OnBadRow, SourceConfig
from trainer.data.loader import Loader
from trainer.data.stream import KEPT_BLOCKS, Block, StreamLoader
from trainer.data.stream_rows import StreamRows
from trainer.data.supervise import TokenRow

PROCESSOR = tiny_processor()
NUMBERS = (11, 3, 7)  # rows of three files


def asked(number: int, name: str) -> dict[str, str]:
    return {"prompt": f"say {name} {number}", "completion": "abcdefghi"[: 1 + number * 5 % 9]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, of which the second has a row that cannot be used."""
    directory = tmp_path_factory.mktemp("stream")
    for name, count in zip("abc", NUMBERS, strict=True):
        write_jsonl(directory / f"{name}.jsonl", [asked(number, name) for number in range(count)])
    return directory


def config(folder: Path, *, block_rows: int = 4, mixed: bool = False, **changes: Any) -> DataConfig:
    """All files one after the other, or the third mixed in."""
    train = [str(folder / f"{name}.jsonl") for name in ("ab" if mixed else "abc")]
    sources = {"third": SourceConfig(path=str(folder / "c.jsonl"), weight=0.5)} if mixed else {}
    values: dict[str, Any] = {"train": train, "sources": sources, "streaming": True, "max_length_tokens": 80}
    values |= {"stream_block_rows": block_rows} | changes
    return DataConfig(**values)


def stream(data: DataConfig, *, batch_size: int = 2, packing: bool = True, seed: int = 3, **more: Any) -> StreamLoader:
    return StreamLoader(
        StreamRows(data, PROCESSOR, seed), batch_size=batch_size, seed=seed, collator=Collator(0),
        shuffle=data.shuffle, budget=80 if packing else None, **more,
    )  # fmt: skip


def as_values(row: TokenRow) -> tuple[Any, ...]:
    return (row.where, tuple(row.ids.tolist()), tuple(row.supervised.tolist()))


def taken(loader: StreamLoader | Loader, position: int, *, process: int = 0) -> list[Any]:
    return [[as_values(row) for row in pack] for pack in loader.take_packs(position, process=process)]


def packs_of(loader: StreamLoader, count: int) -> list[Any]:
    """The first packs of a stream."""
    return [[as_values(row) for row in loader.pack(place)] for place in range(count)]


def first_epochs(loader: StreamLoader, count: int) -> list[list[str]]:
    """The rows of each epoch, of blocks that end with it, in the order in which they are taken."""
    found: list[list[str]] = [[] for _ in range(count)]
    number = 0
    while (block := loader.block(number)).begin.cursors[0].epoch < count:
        found[block.begin.cursors[0].epoch] += [row.where for pack in block.packs for row in pack]
        number += 1
    return found


@settings(max_examples=15, deadline=None)
@given(
    position=st.integers(0, 60), block_rows=st.integers(1, 30), mixed=st.booleans(), packing=st.booleans(),
    shuffle=st.booleans(), held_out=st.integers(0, 3),
)  # fmt: skip
def test_a_stream_goes_on_anywhere_as_if_it_had_not_stopped(
    folder: Path, *, position: int, block_rows: int, mixed: bool, packing: bool, shuffle: bool, held_out: int
) -> None:
    def opened() -> StreamLoader:
        found = stream(config(folder, block_rows=block_rows, mixed=mixed, shuffle=shuffle), packing=packing)
        if held_out:
            found.rows.hold_out(held_out)
        return found

    whole = opened()
    for earlier in range(0, position, 2):
        whole.take(earlier)
    state = json.loads(json.dumps(whole.state_at(position)))
    assert state["position"] <= position
    again = opened()
    again.go_on_from(state)
    for later in range(position, position + 12, 2):
        assert taken(again, later) == taken(whole, later)
        assert again.epoch(later) == whole.epoch(later)
        assert again.state_at(later + 2) == whole.state_at(later + 2)
        ours, theirs = again.batch(later), whole.batch(later)
        assert torch.equal(ours.inputs.ids, theirs.inputs.ids)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("mixed", [False, True])
def test_processes_take_together_what_one_takes_alone(folder: Path, *, mixed: bool) -> None:
    data = config(folder, block_rows=5, mixed=mixed)
    two, one = stream(data, batch_size=2), stream(data, batch_size=4)
    for position in range(0, 40, 4):
        both = taken(two, position) + taken(two, position, process=1)
        assert both == taken(one, position)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("block_rows", [1, 4, 21, 100])
def test_an_epoch_has_every_row_once(folder: Path, *, block_rows: int, packing: bool) -> None:
    loader = stream(config(folder, block_rows=block_rows), packing=packing)
    every = sorted(f"{folder / name}.jsonl:{n + 1}" for name, count in zip("abc", NUMBERS, strict=True)
                   for n in range(count))  # fmt: skip
    epochs = first_epochs(loader, 3)
    assert [sorted(epoch) for epoch in epochs] == [every] * 3
    if block_rows > 1:
        assert len(set(map(tuple, epochs))) == 3  # each in another order


def test_rows_in_order_are_those_of_a_set_that_is_read_whole(folder: Path) -> None:
    loader = stream(config(folder, block_rows=4, shuffle=False), packing=False)
    rows = [row for number in range(6) for row in loader.block(number).reading.found.rows]  # an epoch
    whole = Loader(rows, batch_size=2, seed=3, collator=Collator(0), shuffle=False)
    for position in range(0, 60, 2):
        assert taken(loader, position) == taken(whole, position)


def test_blocks_are_packed_with_several_rows_in_a_pack(folder: Path) -> None:
    loader = stream(config(folder, block_rows=8))
    assert max(len(pack) for pack in packs_of(loader, 20)) >= 2
    assert all(sum(len(row.ids) - 1 for row in pack) <= 80 for n in range(4) for pack in loader.block(n).packs)


def test_sources_are_drawn_by_weight(folder: Path) -> None:
    loader = stream(config(folder, block_rows=60, mixed=True), packing=False)
    of_third = sum(
        "c.jsonl" in row.where for number in range(10) for pack in loader.block(number).packs for row in pack
    )
    assert of_third / 600 == pytest.approx(1 / 3, abs=0.06)  # 0.5 against 1; a spread of 0.02
    epochs = [cursor.epoch for cursor in loader.block(9).end.cursors]
    assert epochs[0] > 20  # each begins anew at its own end
    assert epochs[1] > 20


def test_only_a_few_blocks_are_in_memory(folder: Path) -> None:
    loader = stream(config(folder, block_rows=2))
    seen: list[weakref.ref[Block]] = [weakref.ref(loader.block(number)) for number in range(40)]
    gc.collect()
    assert sum(one() is not None for one in seen) <= KEPT_BLOCKS


def test_a_block_that_is_gone_is_made_again(folder: Path) -> None:
    loader = stream(config(folder, block_rows=3, mixed=True))
    first = [taken(loader, position) for position in range(0, 40, 2)]
    assert [taken(loader, position) for position in reversed(range(0, 40, 2))] == first[::-1]


def test_a_stream_that_is_closed_reads_no_more(folder: Path) -> None:
    loader = stream(config(folder, block_rows=10**9, mixed=True))  # a block that has no end
    coming = loader.pool.submit(loader.rows.read, 0, loader.rows.start)
    loader.close()
    with pytest.raises(CancelledError):
        coming.result(timeout=60)
    with pytest.raises(RuntimeError, match="after shutdown"):
        loader.take(0)


def test_going_on_waits_for_what_is_being_read(folder: Path) -> None:
    whole = stream(config(folder, block_rows=4))
    expected = [taken(whole, position) for position in range(0, 30, 2)]
    state = whole.state_at(16)
    for _ in range(20):
        again = stream(config(folder, block_rows=4))
        again.block(0)  # the next is begun
        again.go_on_from(state)
        assert [taken(again, position) for position in range(16, 30, 2)] == expected[8:]
        assert again.marks[0].number == state["block"]
        assert [mark.number - state["block"] for mark in again.marks] == list(range(len(again.marks)))


def test_many_threads_get_what_one_gets(folder: Path) -> None:
    alone, shared = stream(config(folder, block_rows=3)), stream(config(folder, block_rows=3))
    places = [place for start in range(0, 60, 6) for place in (start + 4, start, start + 2)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda place: taken(shared, place), places))
    assert together == [taken(alone, place) for place in places]


def test_held_out_rows_are_the_first_and_never_learnt(folder: Path, tmp_path: Path) -> None:
    rows = [asked(number % 9, "a") for number in range(20)]  # the first nine stand there again
    data = config(folder, block_rows=4, train=[str(write_jsonl(tmp_path / "a.jsonl", rows))])
    loader = stream(data)
    loader.rows.hold_out(3)
    held_out = loader.rows.held_out_rows
    assert held_out is not None
    assert [row.where.rpartition(":")[2] for row in held_out.rows] == ["1", "2", "3"]
    lines = [int(row[0].rpartition(":")[2]) for pack in packs_of(loader, 40) for row in pack]
    for start in (0, 12, 24):  # of twenty rows there are twelve left
        assert Counter(line % 9 for line in lines[start : start + 12]) == {4: 2, 5: 2, 6: 2, 7: 2, 8: 2, 0: 2}


def test_a_bad_row_is_told_when_it_is_read_and_not_before(folder: Path, tmp_path: Path) -> None:
    rows = [asked(number, "a") for number in range(20)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows[:10], "{", {"prompt": "b"}, *rows[10:]])
    loader = stream(config(folder, block_rows=4, train=[str(path)]), packing=False, batch_size=4)
    before = [taken(loader, 0), taken(loader, 4)]
    for _ in range(2):  # and every time it is asked for
        with pytest.raises(InputError, match=r"2 of 6 rows cannot be used; leave them out .*\n.*a\.jsonl:11: found no"):
            loader.take(8)
    with pytest.raises(InputError, match=r"a\.jsonl:11"):
        loader.take(20)  # behind it there is nothing
    state = loader.state_at(8)
    told: list[str] = []
    skipping = stream(
        config(folder, block_rows=4, train=[str(path)], on_bad_row=OnBadRow.skip), packing=False, batch_size=4,
        tell=told.append,
    )  # fmt: skip
    assert [taken(skipping, 0), taken(skipping, 4)] == before
    assert skipping.state_at(8) == state
    assert sorted(row[0][0] for row in taken(skipping, 8)) == [f"{path}:{line}" for line in (10, 13, 14, 9)]
    first_epochs(skipping, 3)
    assert len(told) == 1  # of three epochs
    assert told[0].startswith("data: block 3 of the stream has 4 rows, and leaves out 2 that cannot be used")
    assert f"{path}:11: found no JSON" in told[0]


@pytest.mark.parametrize("mixed", [False, True])
def test_a_source_of_which_no_row_is_left_is_refused(folder: Path, tmp_path: Path, *, mixed: bool) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [asked(number, "x" * 90) for number in range(5)]))
    other = {"long": SourceConfig(path=path)}
    data = config(folder, long_rows=LongRows.skip, block_rows=20)
    data = config(folder, long_rows=LongRows.skip, block_rows=20, train=data.train if mixed else [path],
                  sources=other if mixed else {})  # fmt: skip
    name = "long" if mixed else "data.train"
    with pytest.raises(InputError, match=f"'{name}': none of its rows is left|none of .* rows is left"):
        stream(data).take(0)


def test_other_rows_at_the_place_that_a_run_goes_on_from_are_refused(folder: Path, tmp_path: Path) -> None:
    rows = [asked(number, "a") for number in range(20)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = config(folder, train=[str(path)], block_rows=4)
    state = stream(data)
    for position in range(0, 8, 2):
        state.take(position)
    found = state.state_at(8)
    rows[4 * found["block"] + 1]["completion"] = "z"
    write_jsonl(path, rows)
    expected = rf"the stream is not what it was: from row \d+ of '{path}' on there are other rows.* fork=true"
    with pytest.raises(CheckpointError, match=expected):
        stream(data).go_on_from(found)


def test_damaged_media_are_told_with_the_block_they_are_in(tmp_path: Path) -> None:
    shown = {"prompt": "what? <image_soft_token>", "completion": "a"}
    rows = [shown | {"images": [f"{number}.png"]} for number in range(6)]
    for number in range(6):
        content = picture_bytes(number)
        (tmp_path / f"{number}.png").write_bytes(content[:60] if number == 4 else content)
    path = write_jsonl(tmp_path / "a.jsonl", rows)

    def opened(on_bad_row: OnBadRow, told: list[str]) -> StreamLoader:
        data = DataConfig(
            train=[str(path)], streaming=True, stream_block_rows=3, on_bad_row=on_bad_row, max_length_tokens=100
        )
        processor = tiny_media_processor()
        return StreamLoader(
            StreamRows(data, processor, 0), batch_size=1, seed=0, collator=Collator(0, processor), tell=told.append
        )

    refusing = opened(OnBadRow.refuse, [])
    assert refusing.batch(0).inputs.images is not None
    with pytest.raises(InputError, match=r"1 of 3 rows cannot be used.*\n.*a\.jsonl:5: "):
        refusing.take(3)
    told: list[str] = []
    skipping = opened(OnBadRow.skip, told)
    assert {row.where for place in range(5) for row in skipping.take(place)} == {
        f"{path}:{number}" for number in (1, 2, 3, 4, 6)
    }
    assert "leaves out 1 that cannot be used" in told[0]
    assert f"{path}:5: " in told[0]


def damaged(content: bytes) -> bytes:
    """A picture whose header is whole and whose pixels are not."""
    middle = content.index(b"IDAT") + 12
    return content[:middle] + bytes(8) + content[middle + 8 :]


def shown_rows(directory: Path, broken: Collection[int], count: int) -> Path:
    shown = {"prompt": "what? <image_soft_token>", "completion": "a"}
    for number in range(count):
        content = picture_bytes(number)
        (directory / f"{number}.png").write_bytes(damaged(content) if number in broken else content)
    return write_jsonl(directory / "a.jsonl", [shown | {"images": [f"{number}.png"]} for number in range(count)])


def showing(path: Path, **changes: Any) -> StreamLoader:
    processor = tiny_media_processor()
    data = DataConfig(
        train=[str(path)], streaming=True, stream_block_rows=3, on_bad_row=OnBadRow.skip, max_length_tokens=100,
        **changes,
    )  # fmt: skip
    return StreamLoader(StreamRows(data, processor, 0), batch_size=1, seed=0, collator=Collator(0, processor))


def test_a_block_of_damaged_media_alone_is_made_of_the_rows_behind_them(tmp_path: Path) -> None:
    loader = showing(shown_rows(tmp_path, {3, 4}, 5))  # the second block has no others
    lines = [row.where.rpartition(":")[2] for place in range(9) for row in loader.take(place)]
    assert [sorted(lines[start : start + 3]) for start in (0, 3, 6)] == [["1", "2", "3"]] * 3
    assert loader.block(1).reading.found.num_bad == 2
    nothing = showing(shown_rows(tmp_path, range(5), 5))
    with pytest.raises(InputError, match="all have damaged media"):
        nothing.take(0)


def test_another_picture_at_the_place_that_a_run_goes_on_from_is_refused(tmp_path: Path) -> None:
    path = shown_rows(tmp_path, (), 6)
    state = showing(path).state_at(0)
    showing(path).go_on_from(state)
    (tmp_path / "1.png").write_bytes(picture_bytes(100))
    with pytest.raises(CheckpointError, match="the stream is not what it was"):
        showing(path).go_on_from(state)


def test_of_several_files_one_may_be_empty_but_not_all(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    whole = config(folder).train
    data = config(folder, block_rows=4, train=[whole[0], str(empty), *whole[1:], str(empty)])
    assert packs_of(stream(data), 20) == packs_of(stream(config(folder, block_rows=4)), 20)
    with pytest.raises(InputError, match=r"no rows in '.*empty\.jsonl'"):
        stream(config(folder, train=[str(empty)])).take(0)


def test_rows_are_held_out_alike_under_any_seed_and_weight(folder: Path) -> None:
    found = []
    for seed, weight in ((1, 0.5), (2, 5.0)):
        sources = {"third": SourceConfig(path=str(folder / "c.jsonl"), weight=weight)}
        loader = stream(config(folder, mixed=True, sources=sources), seed=seed)
        loader.rows.hold_out(4)
        assert loader.rows.held_out_rows is not None
        found.append([row.where for row in loader.rows.held_out_rows.rows])
    assert found[0] == found[1]


def test_bad_rows_at_the_end_of_an_epoch_make_no_block_of_one_row(folder: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*(asked(number, "a") for number in range(8)), "{", "{"])
    loader = stream(config(folder, train=[str(path)], on_bad_row=OnBadRow.skip))
    assert [len(loader.block(number).reading.found.rows) for number in range(5)] == [4] * 5


def test_nothing_is_read_ahead_before_training(folder: Path) -> None:
    loader = stream(config(folder))
    loader.block(0)
    assert list(loader.blocks) == [0]
    loader.take(0)
    assert list(loader.blocks) == [0, 1] or list(loader.blocks) == [1, 0]
