# SPDX-License-Identifier: Apache-2.0
"""What a source's name stands for: a file, a directory of a data set, or a data set of the hub.

chat.jsonl              a file, read as its ending says
saved                   a directory that ``save_to_disk`` wrote, or one of data files
saved@test              one split of it
org/name:config@split   of the hub, where there is no such directory
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from model.errors import InputError
from trainer.data.reaching import offline_if_unreachable
from trainer.data.reading import Piece, read_csv, read_json, read_lines, read_text
from trainer.data.tables import piece_of, read_arrow, read_parquet, streamed_pieces

READERS = {
    ".jsonl": read_lines, ".ndjson": read_lines, ".json": read_json, ".parquet": read_parquet, ".csv": read_csv,
    ".tsv": read_csv, ".arrow": read_arrow, ".txt": read_text,
}  # fmt: skip
ENDINGS = f"{', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}"
PARTS = re.compile(r"(?P<name>.+?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[^@/]+))?")
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
SAVED = ("dataset_dict.json", "state.json")  # in a directory that was written by save_to_disk
USUAL_SPLIT = "train"
ENDS_BYTES = 2**20  # of a file, at either end, that are looked at where the whole would be too much


def find(source: str | Path, *, streaming: bool = False) -> list[Piece]:
    """The files of a source, or its split, in order; of a hub name it is downloaded, unless it was.

    Args:
        source: The name.
        streaming: Whether what the hub has is read from there as it is needed, and not downloaded.

    Raises:
        InputError: There is none, or it cannot be read as a whole.
    """
    text = str(source)
    if Path(text).is_file():
        return [file_piece(Path(text))]
    parted = PARTS.fullmatch(text)
    if parted is None:
        raise InputError("data: found an empty name; name a file, a directory or a data set of the hub")
    name, config, split = parted["name"], parted["config"], parted["split"]
    if Path(name).is_dir():
        is_saved = any((Path(name) / file).is_file() for file in SAVED)
        return saved(Path(name), split) if is_saved else folder(Path(name), config, split)
    if Path(name).is_file():
        raise InputError(f"data: '{text}': a file has no configs and splits; name '{name}' alone")
    if Path(name).suffix in READERS or not HUB_NAME.fullmatch(name):
        raise InputError(f"data: no file '{text}' (relative names start at {Path.cwd()})")
    return hub_stream(name, config, split) if streaming else hub(name, config, split)


def file_piece(path: Path) -> Piece:
    """A file, to be read as its ending says."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        found = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
        raise InputError(f"data: '{path}' {found}; expected {ENDINGS}")
    return Piece(str(path), path.parent, partial(read, path), partial(digest_of, [path]), partial(glance_at, [path]))


def digest_of(paths: Iterable[Path]) -> bytes:
    """A hash of the content of a file, or of several in their order."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


def glance_at(paths: Iterable[Path]) -> bytes:
    """A hash of the sizes, first and last bytes of files in their order: to read all of large ones takes too long."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            first = file.read(ENDS_BYTES)
            size = file.seek(0, 2)
            file.seek(max(size - ENDS_BYTES, 0))
            digest.update(f"{size} ".encode() + hashlib.sha256(first).digest() + hashlib.sha256(file.read()).digest())
    return digest.digest()


def saved(directory: Path, split: str | None) -> list[Piece]:
    """A data set, or one split of several, as ``save_to_disk`` wrote it."""
    import datasets  # late: it takes a second, and files need none of it

    try:
        loaded = datasets.load_from_disk(directory)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"data: '{directory}': no data set can be loaded from it ({told(error)})") from None
    if isinstance(loaded, datasets.DatasetDict):
        split = chosen(split, loaded, str(directory))
        loaded = loaded[split]
    elif split is not None:
        raise InputError(f"data: '{directory}@{split}': the data set has no splits; leave @{split} out")
    name = str(directory) if split is None else f"{directory}[{split}]"
    files = [Path(file["filename"]) for file in loaded.cache_files]
    found = piece_of(loaded, name, directory)
    return [Piece(name, directory, found.read, partial(digest_of, files), partial(glance_at, files))]


def folder(directory: Path, config: str | None, split: str | None) -> list[Piece]:
    """The data files of one split of a directory, which ``datasets`` tells from their names and the README.

    They are read as any other file: nothing is converted, and no column is given a type.
    """
    import datasets
    from datasets import exceptions

    try:
        files = datasets.load_dataset_builder(str(directory), name=config).config.data_files
    except FileNotFoundError:
        files = None
    except (OSError, ValueError, exceptions.DatasetsError) as error:
        raise InputError(f"data: '{directory}': no data set can be made of it ({told(error)})") from None
    if not isinstance(files, dict) or not files:
        raise InputError(f"data: directory '{directory}' has no data; expected files that end in {ENDINGS}")
    return [file_piece(Path(file)) for file in files[chosen(split, files, str(directory))]]


def hub(name: str, config: str | None, split: str | None) -> list[Piece]:
    """One split of a data set of the hub, from the library's cache if it is there.

    Raises:
        InputError: There is none of this name, or it cannot be fetched.
    """
    import datasets

    text = f"{name}{f':{config}' if config else ''}"
    with told_of_the_hub(text):
        loaded = datasets.load_dataset(name, config, split=split)
    if isinstance(loaded, datasets.DatasetDict):
        split = chosen(split, loaded, text)
        loaded = loaded[split]
    assert isinstance(loaded, datasets.Dataset), "nothing is streamed"
    return [piece_of(loaded, f"{text}[{split}]", Path.cwd())]


def hub_stream(name: str, config: str | None, split: str | None) -> list[Piece]:
    """One split of a data set of the hub, read from there; raises as ``hub``."""
    import datasets

    text = f"{name}{f':{config}' if config else ''}"
    with told_of_the_hub(text):
        builder = datasets.load_dataset_builder(name, config)
        splits = builder.info.splits or builder.config.data_files or {}
    split = chosen(split, splits, text)
    with told_of_the_hub(text):
        return streamed_pieces(builder, split, f"{text}[{split}]", Path.cwd())


@contextmanager
def told_of_the_hub(text: str) -> Iterator[None]:
    """Turn what the library raises about a data set of the hub into an InputError that says what to do."""
    from datasets import exceptions

    try:
        with offline_if_unreachable():
            yield
    except exceptions.DatasetNotFoundError:
        raise InputError(
            f"data: '{text}' is no file or directory here (relative names start at {Path.cwd()}), and the hub has no"
            " data set of this name that it would give you; check the name, or log in"
        ) from None
    except ConnectionError:
        raise InputError(
            f"data: '{text}' is no file or directory here (relative names start at {Path.cwd()}), and the hub cannot"
            " be reached; check the name, or download the data set where there is a network"
            " (datasets.load_dataset(…).save_to_disk(DIRECTORY)) and name the directory"
        ) from None
    except (OSError, ValueError, RuntimeError, exceptions.DatasetsError) as error:
        raise InputError(f"data: '{text}': no data set can be loaded from the hub ({told(error)})") from None


def chosen(split: str | None, among: Iterable[Any], name: str) -> str:
    """The split that is meant: that of the name, else the only one, or ``train``."""
    names = [str(one) for one in among]
    if split is None and len(names) == 1:
        return names[0]
    wanted = split or USUAL_SPLIT
    if wanted not in names:
        raise InputError(f"data: '{name}': has no split '{wanted}'; name one of {', '.join(names)}, as {name}@SPLIT")
    return wanted


def told(error: BaseException) -> str:
    """The first line of what a library says."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
