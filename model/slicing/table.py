# SPDX-License-Identifier: Apache-2.0
"""Tables of sub-models in Google's CSV schema: read without running what stands in them, and written.

A row holds a name, how many layers are kept, effective parameters in billions, an accuracy, the width of each kept
layer, and which layers are skipped. Widths are whole numbers or products of them: ``2_048 * 8``.

``published_slices.csv`` is Google's own table, byte for byte: the dataset google/gemma3n-slicing-configs on the
Hugging Face hub, of 16 sub-models of Gemma 3n E4B with the MMLU accuracy of its pre-trained checkpoint. Its sizes are
rounded, and up to 0.02 billion above the parameters that are there. mistral.rs reads the same schema, and of products
only those of two factors.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from math import prod
from pathlib import Path

from model.config import TextConfig
from model.errors import SliceError, counted
from model.slicing.config import slice_text_config
from model.slicing.count import Layout, text_shapes
from model.slicing.plan import count
from model.slicing.spec import FILE_NAME, SliceConfig, SliceSpec, check_skips

PUBLISHED = "published_slices.csv"
NAME, LAYERS, SIZE, ACCURACY = "name", "# Layers", "# Effective Params (B)", "MMLU PT accuracy"
WIDTHS, SKIPPED = "FFN Hidden Dims", "Layers Skipped"
HEADER: tuple[str, ...] = (NAME, LAYERS, SIZE, ACCURACY, WIDTHS, SKIPPED)
UNNAMED = ("custom", "full")  # names of conf/slice that say nothing about a row

MAX_WIDTH = 1_000_000  # neurons; what is larger is a mistake: Gemma 3n's widest layer has 16,384
FACTOR = 2_048  # of which Google writes widths as multiples
MAX_DIGITS, MAX_FACTORS = 9, 4  # of a number, of a product; enough for any width, and soon computed
NUMBER = re.compile(r"[0-9]+(_[0-9]+)*")
DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
SHARE = re.compile(r"([0-9]+(\.[0-9]+)?%?)?")
SAYS_LITTLE = frozenset({"config", "for", "official", "model", "level"})  # words of Google's names


@dataclass(frozen=True)
class SliceRow:
    """One row of a table: a sub-model, and what is said about it."""

    name: str
    size: str  # effective parameters, in billions, as stated
    accuracy: str  # of MMLU, as stated: "62.30%"; empty if it is not
    written: SliceConfig


def read_slices(path: Path | str) -> dict[str, SliceConfig]:
    """The sub-models of a table, by the names of its rows.

    Raises:
        SliceError: The file cannot be read, is no such table, or a cell holds anything but what belongs there.
    """
    return {row.name: row.written for row in read_rows(path)}


def published_slices() -> dict[str, SliceConfig]:
    """Google's 16 sub-models of Gemma 3n E4B, by their published names."""
    return {row.name: row.written for row in published_rows()}


def read_rows(path: Path | str) -> list[SliceRow]:
    """The rows of a table; errors as of ``read_slices``."""
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise SliceError(
            f"{path}: the table of slices cannot be read ({error.strerror}); give a CSV file"
            f" (relative names start at {Path.cwd()})"
        ) from None
    return parse_rows(content, str(path))


def published_rows() -> list[SliceRow]:
    """The rows of Google's table."""
    return parse_rows((resources.files("model.slicing") / PUBLISHED).read_bytes(), PUBLISHED)


def parse_rows(content: bytes, where: str) -> list[SliceRow]:
    """The rows of a table that is read already; ``where`` it is from is told in errors."""
    try:
        text = content.decode("utf-8-sig")  # spreadsheets put a mark before the header
    except UnicodeDecodeError as error:
        raise SliceError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start}); a table of slices is a CSV file: export"
            " a spreadsheet as one"
        ) from None
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise SliceError(f"{where}: not CSV ({error}); put lists between double quotes") from None
    numbered = [(number, cells) for number, cells in enumerate(lines, start=1) if cells]
    if not numbered:
        raise SliceError(f"{where}: the file is empty; its first line must be {','.join(HEADER)}")
    (_, header), *body = numbered
    check_header(header, where)
    if not body:
        raise SliceError(f"{where}: there is a header, but no row below it; add a row per slice")
    rows: dict[str, SliceRow] = {}
    for number, cells in body:
        row = parse_row(cells, f"{where}, row {number}")
        if row.name in rows:
            raise SliceError(
                f"{where}, row {number}, column '{NAME}': a row above is also named '{row.name}'; rename one of them"
            )
        rows[row.name] = row
    return list(rows.values())


def check_header(found: Sequence[str], where: str) -> None:
    """Raise SliceError unless these are the columns, in their order."""
    if tuple(found) == HEADER:
        return
    missing = [f"'{name}'" for name in HEADER if name not in found]
    unknown = [short(name) for name in found if name not in HEADER]
    told = [f"there is no {', '.join(missing)}"] if missing else []
    told += [f"nobody knows {', '.join(unknown)}"] if unknown else []
    raise SliceError(
        f"{where}, row 1: {' and '.join(told) or 'the columns are in another order, or twice'};"
        f" the first line must be {','.join(HEADER)}"
    )


def parse_row(cells: Sequence[str], where: str) -> SliceRow:
    """One row, every cell of it checked."""
    if len(cells) != len(HEADER):
        raise SliceError(
            f"{where}: {counted(len(cells), 'cell')}, but there are {len(HEADER)} columns; put lists between double"
            " quotes, and end with a comma if no layer is skipped"
        )
    row = dict(zip(HEADER, cells, strict=True))
    if not row[NAME].strip() or not row[NAME].isprintable():
        raise SliceError(f"{where}, column '{NAME}': {short(row[NAME])} is found; give the slice a name, in one line")
    for column, pattern, example in ((SIZE, DECIMAL, "a number, as 2.98"), (ACCURACY, SHARE, "a share, as 59.50%")):
        if not pattern.fullmatch(row[column]):
            raise SliceError(f"{where}, column '{column}': {short(row[column])} is found; write {example}")
    layers = whole_number(row[LAYERS], f"{where}, column '{LAYERS}'")
    widths = [width_of(entry, place) for entry, place in entries(row[WIDTHS], f"{where}, column '{WIDTHS}'")]
    if len(widths) != layers or not widths:
        raise SliceError(
            f"{where}, column '{LAYERS}': it says {counted(layers, 'layer')}, but '{WIDTHS}' has"
            f" {counted(len(widths), 'width')}; give as many as layers are kept, and at least one"
        )
    skipped: list[int] = []
    if row[SKIPPED].strip():
        place = f"{where}, column '{SKIPPED}'"
        skipped = [whole_number(entry, within) for entry, within in entries(row[SKIPPED], place)]
        check_skips(place, skipped)
    written = SliceConfig(name=short_name(row[NAME]), skip_layers=skipped, ffn_widths=widths)
    return SliceRow(row[NAME], row[SIZE], row[ACCURACY], written)


def entries(cell: str, where: str) -> Iterator[tuple[str, str]]:
    """The entries of a list in brackets, each with where it stands."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]") and len(text) > 1):
        raise SliceError(f"{where}: {short(cell)} is found; write a list in brackets, as [20, 21]")
    inside = text[1:-1].strip()
    for number, entry in enumerate(inside.split(",") if inside else (), start=1):
        yield entry.strip(), f"{where}, entry {number}"


def width_of(entry: str, where: str) -> int:
    """A width: a whole number, or a product of whole numbers."""
    factors = [factor.strip() for factor in entry.split("*")]
    if not all(NUMBER.fullmatch(factor) for factor in factors):
        raise SliceError(
            f"{where}: {short(entry)} is found, and is not computed; allowed are whole numbers and products of them,"
            " as 16384 or 2_048 * 8; write the number"
        )
    is_small = len(factors) <= MAX_FACTORS and all(len(factor) <= MAX_DIGITS for factor in factors)
    width = prod(map(int, factors)) if is_small else 0
    if not 0 < width <= MAX_WIDTH:
        raise SliceError(
            f"{where}: {short(entry)} is found; a width is 1 to {MAX_WIDTH:,} neurons, and at most that of the layer"
            " in the parent"
        )
    return width


def whole_number(entry: str, where: str) -> int:
    """A count or the number of a layer."""
    if not NUMBER.fullmatch(entry.strip()) or len(entry.strip()) > MAX_DIGITS:
        raise SliceError(f"{where}: {short(entry)} is found; write a whole number from 0 on, in digits")
    return int(entry)


def short(found: str) -> str:
    """What was found, as much of it as a line can hold."""
    limit = 40
    return repr(found if len(found) <= limit else f"{found[:limit]}…")


def short_name(published: str) -> str:
    """A name for files and commands: ``Config for E2.98B (layer-level)`` is ``e2_98b_layer``."""
    if FILE_NAME.fullmatch(published):
        return published
    words = re.findall(r"[^\W_]+", published.lower())
    return "_".join([word for word in words if word not in SAYS_LITTLE] or words) or "slice"


def written_in(config: SliceConfig) -> SliceConfig:
    """``config`` with the layers and widths of the row that it names; as it is, if it names none.

    The row's name becomes that of the slice, unless it has one of its own.

    Raises:
        SliceError: Both a row and layers or widths are given, a file without a row, or a row that is not there.
    """
    if config.csv is None and config.row is None:
        return config
    where = f"slice '{config.name}'"
    given = [name for name in ("skip_layers", "ffn_widths") if getattr(config, name)]
    if given:
        keys = " and ".join(key for key in ("csv", "row") if getattr(config, key) is not None)
        raise SliceError(
            f"{where}: {keys} and {' and '.join(given)} are given, but a row says which layers are skipped and how"
            f" wide the others are; leave out {' and '.join(given)}, or {keys}"
        )
    rows = published_slices() if config.csv is None else read_slices(config.csv)
    table = "Google's table" if config.csv is None else config.csv
    if config.row is None:
        raise SliceError(f"{where}: csv is given, but no row of it; choose slice.row= one of {listed(rows)}")
    if config.row not in rows:
        near = [name for name in rows if config.row in (rows[name].name, name.lower())]
        near = near or difflib.get_close_matches(config.row, rows, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise SliceError(f"{where}: {table} has no row '{config.row}'; it has {listed(rows)}{hint}")
    found = rows[config.row]
    return replace(found, name=found.name if config.name in UNNAMED else config.name)


def listed(names: Iterable[str]) -> str:
    """Names of rows, as many as can be read in a line or two."""
    several, limit = list(names), 20
    more = f" and {len(several) - limit} more" if len(several) > limit else ""
    return ", ".join(f"'{name}'" for name in several[:limit]) + more


def write_slices(
    path: Path | str,
    specs: Mapping[str, SliceSpec],
    config: TextConfig,
    *,
    accuracy: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write parts of ``config`` as a table, by the names that their rows are to have.

    Args:
        accuracy: Of MMLU, by name, as in ``62.30%``; rows without one are left empty there.

    Raises:
        SliceError: A spec is no part of ``config``, a name or an accuracy is none, or the file is there already.
    """
    accuracy = accuracy or {}
    if unknown := sorted(accuracy.keys() - specs.keys()):
        raise SliceError(f"{path}: accuracy of {listed(unknown)}, but there is no such slice among {listed(specs)}")
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(HEADER)
    for name, spec in specs.items():
        cells = cells_of(name, spec, config, accuracy=accuracy.get(name, ""))
        parse_row(cells, f"{path}, slice '{name}'")  # what could not be read again is not written
        writer.writerow(cells)
    try:
        with Path(path).open("wb" if overwrite else "xb") as file:
            file.write(content.getvalue().encode("utf-8"))
    except FileExistsError:
        raise SliceError(f"{path}: there is such a file already; choose another name, or overwrite it") from None


def cells_of(name: str, spec: SliceSpec, config: TextConfig, *, accuracy: str) -> list[str]:
    """One row of the table, its size counted."""
    spec.check(config)
    # As of a model of its own: several times as fast as to place each tensor of the parent.
    effective = count(text_shapes(slice_text_config(config, spec), Layout.published)).effective
    skipped = [layer for layer in range(config.num_hidden_layers) if layer not in spec.kept_layers]
    widths = ", ".join(
        f"{FACTOR:_} * {width // FACTOR}" if width % FACTOR == 0 else str(width) for width in spec.ffn_widths
    )
    size = f"{effective / 1e9:.2f}"
    return [name, str(len(spec.kept_layers)), size, accuracy, f"[{widths}]", str(skipped) if skipped else ""]
