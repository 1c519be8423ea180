# SPDX-License-Identifier: Apache-2.0
"""Google's table is read as it is, and what we write is read back as it was."""

from __future__ import annotations

import csv
import hashlib
import re
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import TextConfig
from model.errors import SliceError
from model.slicing.count import Layout, count_effective_parameters, text_shapes
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import (
    HEADER,
    PUBLISHED,
    published_rows,
    published_slices,
    read_rows,
    read_slices,
    short_name,
    write_slices,
    written_in,
)
from tests.laws.drawn import scratch, specs
from tests.tiny import TINY_TEXT

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # beartype does, harmlessly
E4B = TextConfig.parse({})
SHIPPED = Path(str(resources.files("model.slicing") / PUBLISHED))
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=8)


def resolved(written: SliceConfig, config: TextConfig = E4B) -> SliceSpec:
    return SliceSpec.resolve(written, config)


def test_the_shipped_table_is_googles_byte_for_byte() -> None:
    digest = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert digest == "2a069bce112754c46501ce1fe8d9ab10de392fc065d53450a6fd514966b757df"


def test_every_published_slice_is_a_legal_part_of_e4b_of_about_the_size_that_is_stated() -> None:
    shapes = text_shapes(E4B, Layout.published).items()
    rows = published_rows()
    assert len(rows) == 16
    for row in rows:
        effective = count_effective_parameters(shapes, SubModel(resolved(row.written)), E4B)
        # The sheet is rounded, and up to 0.02 billion above the exact counts.
        assert -0.006 < float(row.size) - effective / 1e9 < 0.0201, row.name


def test_the_published_e2b_is_read_as_it_is_written_there() -> None:
    e2b = published_slices()["Config for official E2B Model"]
    assert e2b == SliceConfig(name="e2b", skip_layers=[20, 21, 22, 23, 24], ffn_widths=[8192] * 30)


def test_what_is_said_about_a_row_is_kept_as_it_is_written() -> None:
    last = published_rows()[-1]
    assert (last.name, last.size, last.accuracy) == ("Config for E3.79B (block-level)", "3.74", "62.00%")


@pytest.mark.parametrize(
    ("published", "name"),
    [
        ("Main model", "main"),
        ("Config for official E2B Model", "e2b"),
        ("Config for E2.98B (layer-level)", "e2_98b_layer"),
        ("Config for E2.98B (block-level)", "e2_98b_block"),
        ("my_model-2.5", "my_model-2.5"),
        ("Model", "Model"),
        ("official model", "official_model"),
        ("(!)", "slice"),
    ],
)
def test_a_row_gets_a_name_that_a_file_can_have(published: str, name: str) -> None:
    assert short_name(published) == name


def test_published_slices_get_names_of_their_own() -> None:
    names = [written.name for written in published_slices().values()]
    assert len(set(names)) == 16
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


@given(drawn=st.dictionaries(NAMES.filter(str.strip), specs(TINY_TEXT), min_size=1, max_size=3))
@settings(max_examples=15)
def test_what_is_written_is_read_back_as_it_was(drawn: dict[str, SliceSpec]) -> None:
    with scratch() as directory:
        write_slices(directory / "mine.csv", drawn, TINY_TEXT)
        found = read_slices(directory / "mine.csv")
    assert list(found) == list(drawn)
    for name, spec in drawn.items():
        read = resolved(found[name], TINY_TEXT)
        assert read.shape == spec.shape


def test_googles_slices_are_written_as_google_wrote_them_but_for_their_size(tmp_path: Path) -> None:
    rows = {row.name: row for row in published_rows()}
    specs_of = {name: resolved(row.written) for name, row in rows.items()}
    accuracy = {name: row.accuracy for name, row in rows.items()}
    write_slices(tmp_path / "ours.csv", specs_of, E4B, accuracy=accuracy)
    ours, theirs = ((path.read_text(encoding="utf-8")).splitlines() for path in (tmp_path / "ours.csv", SHIPPED))
    size = re.compile(r"(?<=,3[05],)\d\.\d\d(?=,)")
    assert [size.sub("", line) for line in ours] == [size.sub("", line) for line in theirs]
    sizes = [row.size for row in read_rows(tmp_path / "ours.csv")]
    assert sizes[:4] == ["3.98", "1.91", "1.96", "2.52"]  # Google's sheet says 2.54 of the fourth
    assert sizes[-1] == "3.73"


def test_multiples_of_2048_are_written_as_products_and_other_widths_as_they_are(tmp_path: Path) -> None:
    spec = SliceSpec("mine", (0, 1, *range(18, 20)), (2048, 6144, 5000, 16384))
    write_slices(tmp_path / "mine.csv", {"mine": spec}, E4B, accuracy={"mine": "41.5%"})
    with (tmp_path / "mine.csv").open(encoding="utf-8", newline="") as file:
        header, row = csv.reader(file)
    assert tuple(header) == HEADER
    assert row[4] == "[2_048 * 1, 2_048 * 3, 5000, 2_048 * 8]"
    assert row[5] == str([layer for layer in range(35) if layer not in spec.kept_layers])
    assert (row[1], row[3]) == ("4", "41.5%")


def test_a_table_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    content = ",".join(HEADER) + '\r\nmine,2,0.5,,"[ 1_024, 2 * 3*4 ]",[]\r\n\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_slices(path) == {"mine": SliceConfig(name="mine", ffn_widths=[1024, 24])}


def test_a_table_is_written_over_only_if_asked(tmp_path: Path) -> None:
    path, full = tmp_path / "mine.csv", {"full": SliceSpec.full(E4B)}
    write_slices(path, full, E4B)
    with pytest.raises(SliceError, match=r"there is such a file already; choose another name"):
        write_slices(path, full, E4B)
    write_slices(path, {"again": SliceSpec.full(E4B)}, E4B, overwrite=True)
    assert list(read_slices(path)) == ["again"]


@pytest.mark.parametrize(
    ("name", "spec", "accuracy", "message"),
    [
        (" ", SliceSpec.full(E4B), {}, "column 'name': ' ' is found; give the slice a name"),
        ("two\nlines", SliceSpec.full(E4B), {}, "give the slice a name, in one line"),
        ("mine", SliceSpec.full(E4B), {"mine": "best"}, "column 'MMLU PT accuracy': 'best' is found; write a share"),
        ("mine", SliceSpec.full(E4B), {"min": "62%"}, "accuracy of 'min', but there is no such slice among 'mine'"),
        ("mine", SliceSpec("mine", (20,), (8,)), {}, "layer 18 is skipped, but layer 20"),
    ],
)
def test_what_could_not_be_read_is_not_written(
    tmp_path: Path, name: str, spec: SliceSpec, accuracy: dict[str, str], message: str
) -> None:
    with pytest.raises(SliceError, match=message):
        write_slices(tmp_path / "mine.csv", {name: spec}, E4B, accuracy=accuracy)
    assert not any(tmp_path.iterdir())


def test_a_row_of_the_published_table_needs_no_file() -> None:
    found = written_in(SliceConfig(name="custom", row="Config for E2.98B (layer-level)"))
    assert found == published_slices()["Config for E2.98B (layer-level)"]
    assert found.name == "e2_98b_layer"


def test_a_row_of_a_file_of_ones_own_keeps_the_name_that_is_given(tmp_path: Path) -> None:
    write_slices(tmp_path / "mine.csv", {"small": SliceSpec.full(TINY_TEXT)}, TINY_TEXT)
    found = written_in(SliceConfig(name="mine", csv=str(tmp_path / "mine.csv"), row="small"))
    assert (found.name, found.ffn_widths, found.csv, found.row) == ("mine", [48] * 9, None, None)


def test_a_slice_that_names_no_row_is_left_as_it_is() -> None:
    written = SliceConfig(name="mine", skip_layers=[1], ffn_widths=[8])
    assert written_in(written) is written
