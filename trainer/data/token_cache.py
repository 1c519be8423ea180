# SPDX-License-Identifier: Apache-2.0
"""Rows on disk: a data set that was tokenised once is opened the next time, and not read into memory.

An entry is one file, named by a hash of all that decides what is in it: the data's bytes, the tokenizer, how
conversations are written, every setting that rows depend on, and the code that makes them. So nothing in the directory
is ever out of date, and one directory serves any number of runs; nothing in it is ever deleted, either.

A file begins with the hash of all that follows, which is looked at when it is opened: of a damaged one nothing is
used. Then come the length of a description, the description as JSON, and the arrays that it lists. Only sets without
images and sound are kept: what a row with media is depends on files that are no part of the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from model.errors import ConfigError, counted
from model.processor.chat import CHAT_TEMPLATE
from model.processor.processor import Processor
from trainer.data.supervise import TokenRow, TokenRows

FORMAT = 1  # of a file; raised when the same description would mean other rows
CODE = ("trainer.data", "model.processor")  # packages of which every file is part of the key
PACKAGES = ("tokenizers", "datasets", "pyarrow")  # whose versions are
SUFFIX = ".rows"
NAMES = "surrogateescape"  # names of files may be of any bytes
ALIGNMENT = 64  # bytes, at which arrays begin
LENGTH_BYTES = 8
DIGEST_BYTES = hashlib.sha256().digest_size
NOT_TOLD = ("rows", "examples")  # fields of TokenRows that are no numbers or messages
KINDS = {"ids": np.dtype("<i4"), "supervised": np.dtype("?"), "ends": np.dtype("<i8"),
         "places": np.dtype("u1"), "place_ends": np.dtype("<i8"), "digests": np.dtype("u1"),
         "texts": np.dtype("u1"), "text_ends": np.dtype("<i8")}  # fmt: skip

Say = Callable[[str], object]


@dataclass(frozen=True, eq=False)
class KeptRows(Sequence[TokenRow]):
    """Rows of a file, each made when it is asked for; may be read by several threads at a time.

    Args:
        arrays: Those of the file, by name. Row ``i`` is what lies before ``ends[i]`` and behind the row before it.
        chosen: Which rows of the file these are, in order.
    """

    arrays: Mapping[str, np.ndarray]
    chosen: range

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> KeptRows: ...
    def __getitem__(self, index: int | slice) -> TokenRow | KeptRows:
        if isinstance(index, slice):
            return KeptRows(self.arrays, self.chosen[index])
        row = self.chosen[index]
        ids, supervised = (self.part(name, "ends", row) for name in ("ids", "supervised"))
        where = self.part("places", "place_ends", row).tobytes().decode(errors=NAMES)
        return TokenRow(
            torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(supervised.copy()), where,
            text_digest=self.part("texts", "text_ends", row).tobytes(),
        )  # fmt: skip

    def __iter__(self) -> Iterator[TokenRow]:
        return map(self.__getitem__, range(len(self)))

    def part(self, name: str, ends: str, row: int) -> np.ndarray:
        """What the array ``name`` has of a row of the file."""
        start = int(self.arrays[ends][row - 1]) if row else 0
        return self.arrays[name][start : int(self.arrays[ends][row])]

    def lengths(self) -> np.ndarray:
        """The tokens of every row, without making one."""
        return np.diff(self.arrays["ends"], prepend=0)[np.arange(self.chosen.start, self.chosen.stop, self.chosen.step)]


@dataclass(frozen=True, eq=False)
class SourceRows:
    """The rows of some sources, one behind the other.

    Args:
        found: All of them.
        places: Those of each source among them.
        digests: A hash of what each row says, where that is asked for.
        num_media_unseen: How many had images or sound and are not among the rows, or without them: others may be
            found in those files the next time. Nothing of such a set is kept.
    """

    found: TokenRows
    places: Sequence[range]
    digests: Sequence[bytes] = ()
    num_media_unseen: int = 0


@dataclass(frozen=True)
class TokenCache:
    """A directory of rows; may be used by several processes at a time.

    Args:
        directory: Where the files are; made if it is not there.
        say: What is told what a user should know.
        key: What the recipe calls the directory.

    Raises:
        ConfigError: The directory cannot be made, or not be written to.
    """

    directory: Path
    say: Say
    key: str = "data.token_cache"

    def __post_init__(self) -> None:
        probe = self.directory / aside_name("probe")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{self.key}: '{self.directory}' is no directory that can be written to ({error.strerror}); give"
                " another, or a new name"
            ) from None

    def rows(self, describe: Callable[[], Mapping[str, Any]], make: Callable[[], SourceRows]) -> SourceRows:
        """The rows of a description; made and kept if there are none that can be used.

        Args:
            describe: Gives all that decides what the rows are, the data's bytes included.
            make: Reads and tokenises the data.

        Raises:
            InputError: As ``make``.
            ConfigError: They cannot be written, as on a full disk.
        """
        about = describe()
        path = self.path(about)
        if (kept := self.read(path)) is not None:
            return kept
        made = make()
        rows = made.found.rows
        unseen = made.num_media_unseen
        if with_media := sum(bool(row.media) for row in rows) + unseen:
            self.say(
                f"{self.key}: {with_media:,} of {len(rows) + unseen:,} rows have images or sound; only sets of"
                " text alone are kept, and this one is tokenised in every run"
            )
            return made
        if describe() != about:
            self.say(f"{self.key}: the data changed while it was read; its rows are not kept")
            return made
        self.write(path, about, made)
        self.tell_size(len(rows))
        return self.read(path) or made  # mapped from now on, so that memory holds no row

    def tell_size(self, num_rows: int) -> None:
        """Say how much is kept, whenever it gets more."""
        sizes: list[int] = []
        for entry in self.directory.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):  # somebody deletes old ones
                sizes.append(entry.stat().st_size)
        self.say(
            f"{self.key}: {counted(num_rows, 'row')} kept; '{self.directory}' has {counted(len(sizes), 'set')} of"
            f" {sum(sizes) / 1e6:,.1f} MB in all; none is ever deleted by itself, and any may be deleted"
        )

    def path(self, about: Mapping[str, Any]) -> Path:
        """Where the rows that ``about`` describes are, or would be."""
        return self.directory / f"{hashlib.sha256(as_bytes(about)).hexdigest()}{SUFFIX}"

    def read(self, path: Path) -> SourceRows | None:
        """The rows of a file; None if there is none, or it is damaged, which is said."""
        try:
            with path.open("rb") as file:
                digest = file.read(DIGEST_BYTES)
                is_whole = hashlib.file_digest(file, "sha256").digest() == digest
            content = np.asarray(np.memmap(path, mode="r", dtype=np.uint8)) if is_whole else None
        except FileNotFoundError:
            return None
        except OSError as error:
            self.say(f"{self.key}: '{path}' cannot be read ({error.strerror}); its rows are made anew")
            return None
        if content is None:
            self.say(f"{self.key}: '{path}' is damaged (its checksum is another); its rows are made anew")
            return None
        start = DIGEST_BYTES + LENGTH_BYTES
        length = int.from_bytes(content[DIGEST_BYTES:start].tobytes(), "little")
        described = json.loads(content[start : start + length].tobytes())
        arrays = {
            name: content[at : at + size].view(KINDS[name]) for name, (at, size) in described["arrays"].items()
        }  # fmt: skip
        rows = KeptRows(arrays, range(len(arrays["ends"])))
        told: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in described["told"].items()
        }
        found = TokenRows(rows=rows, examples=(), **told)
        digests = arrays["digests"].reshape(-1, DIGEST_BYTES)
        return SourceRows(
            found, list(itertools.starmap(range, described["places"])), [one.tobytes() for one in digests]
        )

    def write(self, path: Path, about: Mapping[str, Any], made: SourceRows) -> None:
        """Keep rows without media; the file is there whole or not at all, whoever else writes it.

        Raises:
            ConfigError: It cannot be written.
        """
        aside = path.with_name(aside_name(path.name))
        try:
            with aside.open("wb") as file:
                file.write(bytes(DIGEST_BYTES))
                digest = hashlib.sha256()
                for part in parts_of(about, made):
                    digest.update(part)
                    file.write(part)
                file.seek(0)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException as error:
            aside.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise ConfigError(
                f"{self.key}: '{path}' cannot be written ({error.strerror}); make room for it, give another"
                f" directory, or leave {self.key} out"
            ) from None


def parts_of(about: Mapping[str, Any], made: SourceRows) -> Iterator[bytes | memoryview]:
    """What a file holds behind its hash, in order."""
    arrays = arrays_of(made.found.rows, made.digests)
    names = [known.name for known in dataclasses.fields(TokenRows) if known.name not in NOT_TOLD]
    known: dict[str, Any] = {
        "about": about,
        "told": {name: getattr(made.found, name) for name in names},
        "places": [(places.start, places.stop) for places in made.places],
    }
    empty = as_bytes(known | {"arrays": {name: [2**62, 2**62] for name in arrays}})
    # Where arrays lie depends on how long the description is, which says where they lie: room is left for any numbers.
    at = start = aligned(DIGEST_BYTES + LENGTH_BYTES + len(empty))
    places: dict[str, tuple[int, int]] = {}
    for name, array in arrays.items():
        places[name] = (at, array.nbytes)
        at = aligned(at + array.nbytes)
    described = as_bytes(known | {"arrays": places})
    length = start - DIGEST_BYTES - LENGTH_BYTES
    yield length.to_bytes(LENGTH_BYTES, "little")
    yield described.ljust(length)
    for array in arrays.values():
        yield array.view(np.uint8).data if array.size else b""
        yield bytes(aligned(array.nbytes) - array.nbytes)


def arrays_of(rows: Sequence[TokenRow], digests: Sequence[bytes]) -> dict[str, np.ndarray]:
    """All rows, one behind the other."""
    places = [row.where.encode(errors=NAMES) for row in rows]
    values = {
        "ids": np.concatenate([row.ids.numpy() for row in rows]),
        "supervised": np.concatenate([row.supervised.numpy() for row in rows]),
        "ends": np.cumsum([len(row.ids) for row in rows]),
        "places": np.frombuffer(b"".join(places), dtype=np.uint8),
        "place_ends": np.cumsum([len(place) for place in places]),
        "digests": np.frombuffer(b"".join(digests), dtype=np.uint8),
        "texts": np.frombuffer(b"".join(row.text_digest for row in rows), dtype=np.uint8),
        "text_ends": np.cumsum([len(row.text_digest) for row in rows]),
    }
    return {name: np.ascontiguousarray(array.astype(KINDS[name])) for name, array in values.items()}


def about_rows(
    data: Sequence[Sequence[tuple[str, str]]],
    processor: Processor,
    settings: Mapping[str, Any],
    *,
    code: str | None = None,
) -> dict[str, Any]:
    """All that decides which rows without media are made, as plain values.

    Args:
        data: Of every source the name and the hash of each file, in order. A row's place has the name in it.
        processor: What tokenises.
        settings: Everything else that was asked for.
        code: What stands for the code; None looks at it.
    """
    towers = {"vision": processor.config.vision, "audio": processor.config.audio}
    return {
        "format": FORMAT,
        "code": code_version() if code is None else code,
        "data": [[list(file) for file in source] for source in data],
        "tokenizer": processor.tokenizer.fingerprint,
        "template": hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
        # Marks of media are refused in a text, and never learnt.
        "media": {name: tower and dataclasses.asdict(tower.tokens) for name, tower in towers.items()},
        "marks": [str(processor.image_marks), str(processor.audio_marks)],
        "settings": dict(settings),
    }


@cache
def code_version() -> str:
    """A hash of the code that makes rows, ours to the letter, that of others by their versions."""
    versions = " ".join(map(version, PACKAGES))
    return digest_of_code(versions, [Path(str(resources.files(package))) for package in CODE])


def digest_of_code(versions: str, directories: Sequence[Path]) -> str:
    """A hash of every source file of some packages, wherever they are installed."""
    digest = hashlib.sha256(versions.encode())
    for directory in directories:
        for path in sorted(directory.rglob("*.py")):
            digest.update(f"\n{path.relative_to(directory).as_posix()} ".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def as_bytes(value: Mapping[str, Any]) -> bytes:
    """Plain values as JSON, one way of writing them only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def aligned(at: int) -> int:
    """The next place at which an array may begin."""
    return -(-at // ALIGNMENT) * ALIGNMENT


def aside_name(name: str) -> str:
    """A name for a file that is not whole yet, which no other thread or process writes."""
    return f".{name}.{os.getpid()}.{threading.get_ident()}"
