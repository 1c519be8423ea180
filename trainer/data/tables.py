# SPDX-License-Identifier: Apache-2.0
"""Raw rows from binary tables: Parquet and Arrow files, and data sets as the ``datasets`` library keeps them.

Nothing is loaded whole: files are memory-mapped or read by row groups, and some rows at a time become Python values.
Rows are taken as Arrow has them, so that no image or sound is decoded on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import InputError
from trainer.data.faults import Fault
from trainer.data.reading import Piece, Row

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetBuilder

ROWS_AT_A_TIME = 64  # each may hold an image
PARQUET_MARK = b"PAR1"  # how files of it begin and end
ARROW_MARK = b"ARROW1"  # how Arrow's file format begins and ends; its stream format has no beginning of its own
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
AGAIN = "copy or download it again"


def read_parquet(path: Path, start: int = 0) -> Iterator[Row | Fault]:
    """The rows of a Parquet file, the first ``start`` left out; groups of rows before them are not read.

    Raises:
        InputError: It is damaged.
    """
    refuse_without_marks(path, PARQUET_MARK, "Parquet")
    import pyarrow.parquet as pq  # late: it takes a while, and most data are text

    def batches() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path, memory_map=True) as file:
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            first, left = first_with(sizes, start)
            groups = list(range(first, len(sizes)))
            yield from without_first(file.iter_batches(batch_size=ROWS_AT_A_TIME, row_groups=groups), left)

    return rows_of(batches(), str(path), start=start)


def read_arrow(path: Path, start: int = 0) -> Iterator[Row | Fault]:
    """The rows of an Arrow file, in its file format or, as ``datasets`` writes it, its stream format.

    The first ``start`` are left out; they are mapped, and no value is made of them.

    Raises:
        InputError: It is damaged.
    """
    import pyarrow as pa  # late, as above

    begin, end = ends_of(path, len(ARROW_MARK), len(STREAM_END))
    is_file = begin == ARROW_MARK
    if is_file and not end.endswith(ARROW_MARK):
        raise InputError(f"data: '{path}': is cut short (its last bytes are not {ARROW_MARK.decode()}); {AGAIN}")

    def batches() -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as mapped:
            if is_file:
                file = pa.ipc.open_file(mapped)
                yield from (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                yield from pa.ipc.open_stream(mapped)
                # A stream that stops between two batches looks like one that ends there.
                if end != STREAM_END:
                    raise OSError("its end is missing")

    return rows_of(without_first(batches(), start), str(path), start=start)


def first_with(sizes: Sequence[int], start: int) -> tuple[int, int]:
    """Which of groups of these sizes has the row with the number ``start``, and how many stand before it there."""
    for number, size in enumerate(sizes):
        if start < size:
            return number, start
        start -= size
    return len(sizes), 0


def without_first(batches: Iterable[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """Tables without their first ``count`` rows."""
    for batch in batches:
        left_out = min(count, batch.num_rows)
        count -= left_out
        if left_out < batch.num_rows:
            yield batch.slice(left_out)


def refuse_without_marks(path: Path, mark: bytes, name: str) -> None:
    """Raise InputError for a file that does not begin and end with ``mark``."""
    begin, end = ends_of(path, len(mark), len(mark))
    if begin != mark:
        raise InputError(
            f"data: '{path}': found no {name} (its first bytes are not {mark.decode()}); give it the ending of what it"
            f" is, or {AGAIN}"
        )
    if end != mark or path.stat().st_size < 2 * len(mark):
        raise InputError(f"data: '{path}': is cut short (its last bytes are not {mark.decode()}); {AGAIN}")


def ends_of(path: Path, first: int, last: int) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file."""
    with path.open("rb") as file:
        begin = file.read(first)
        size = file.seek(0, 2)
        file.seek(max(size - last, 0))
        return begin, file.read(last)


def rows_of(batches: Iterable[Any], name: str, *, prefix: str = "row ", start: int = 0) -> Iterator[Row | Fault]:
    """The rows of tables in order, the first of which has the number ``start + 1``.

    Raises:
        InputError: The next cannot be read.
    """
    import pyarrow as pa

    number = start
    coming = iter(batches)
    while True:
        try:
            table = next(coming, None)
            values = [] if table is None else parts_of(table)
            for value in values:
                number += 1
                yield Row(value, f"{name}:{prefix}{number}")
        except (OSError, ValueError, pa.ArrowException) as error:
            said = str(error).partition("\n")[0].rstrip(".")
            raise InputError(f"data: '{name}': cannot be read from row {number + 1} on ({said}); {AGAIN}") from None
        if table is None:
            return


def parts_of(table: pa.Table | pa.RecordBatch) -> Iterator[Any]:
    """The rows of a table as Python values, some at a time."""
    binary = any("binary" in str(field.type) for field in table.schema)
    for start in range(0, table.num_rows, ROWS_AT_A_TIME):
        for value in table.slice(start, ROWS_AT_A_TIME).to_pylist():
            yield without_paths(value) if binary else value


def without_paths(value: Any) -> Any:
    """The value with the bytes of each medium alone, where a path stands beside them: it leads nowhere any more."""
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return {key: within for key, within in value.items() if key != "path"}
        return {key: without_paths(within) for key, within in value.items()}
    return [without_paths(within) for within in value] if isinstance(value, list) else value


def piece_of(dataset: Dataset, name: str, directory: Path) -> Piece:
    """A memory-mapped data set, called ``name``."""

    def read(start: int) -> Iterator[Row | Fault]:
        left = dataset.skip(start) if start < len(dataset) else dataset.take(0)
        return rows_of(left.with_format("arrow").iter(batch_size=ROWS_AT_A_TIME), name, prefix="", start=start)

    def digest() -> bytes:
        # By the library's own fingerprint, which is one of what was downloaded, and of what was done to it.
        return hashlib.sha256(dataset._fingerprint.encode()).digest()  # noqa: SLF001 (it has no other name)

    return Piece(name, directory, read, digest, digest)


def streamed_pieces(builder: DatasetBuilder, split: str, name: str, directory: Path) -> list[Piece]:
    """The shards of one split of a data set, each read when it is needed, and called ``name``, its number.

    A shard is a file of the data set; those before the one that reading begins in are not opened.
    """
    from datasets import IterableDataset

    found = builder.as_streaming_dataset(split)
    assert isinstance(found, IterableDataset), "one split is asked for"
    whole, count = found, found.num_shards

    def read(number: int, start: int) -> Iterator[Row | Fault]:
        shard = whole.shard(count, number).skip(start)
        return rows_of(
            shard.with_format("arrow").iter(batch_size=ROWS_AT_A_TIME), called(number), prefix="", start=start
        )

    def called(number: int) -> str:
        return name if count == 1 else f"{name}[{number}]"

    def digest() -> bytes:
        # What the library calls its copy by: where the files are, and what they were when they were listed.
        return hashlib.sha256(f"{builder.config_id} {builder.hash} {split}".encode()).digest()

    return [Piece(called(number), directory, partial(read, number), digest, digest) for number in range(count)]
