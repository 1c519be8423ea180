# SPDX-License-Identifier: Apache-2.0
"""Sub-models that cannot be, as they are asked for: each is refused, by what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from model.config import TextConfig
from model.errors import SliceError
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.table import HEADER, read_slices, written_in

E4B = TextConfig.parse({})
HEAD = ",".join(HEADER)
WIDE = [8192] * 35


def skip(*layers: Any) -> SliceConfig:
    return wide(skipped=layers)


def wide(*widths: Any, skipped: Sequence[Any] = ()) -> SliceConfig:
    config = SliceConfig(name="mine")
    config.skip_layers, config.ffn_widths = list(skipped), list(widths)  # of any type, as code may write them
    return config


# As a config, and the part of the message that a user acts on. Of 35 layers, 18 and 19 make what the last 15 read.
REQUESTS: dict[str, tuple[SliceConfig, str]] = {
    "a local producer": (skip(18), "layer 18 is skipped, but layer 20 (sliding_attention) reads its keys and values"),
    "a local producer, remedy": (skip(18), "keep 18, or skip every sliding_attention layer from 20 on"),
    "a global producer": (skip(19), "layer 19 is skipped, but layer 24 (full_attention) reads its keys and values"),
    "a producer of which one reader stays": (
        skip(19, 24, 29), "layer 19 is skipped, but layer 34 (full_attention) reads its keys and values; keep 19",
    ),
    "both producers": (skip(18, 19, *range(20, 34)), "layer 19 is skipped, but layer 34"),
    "a layer twice": (
        skip(20, 21, 21), "skip_layers has [21] more than once; name each layer once: write skip_layers=[20,21]",
    ),
    "layers out of order": (
        skip(22, 20, 21),
        "skip_layers has 20 behind a later layer; layers stand in ascending order: write skip_layers=[20,21,22]",
    ),
    "a layer behind the last": (skip(20, 35), "skip_layers has [35], but the parent has layers 0 to 34; leave out"),
    "a layer from the end": (skip(-1), "skip_layers has [-1], but layers are numbered from 0 on, and not from the end"),
    "every layer": (skip(*range(35)), "skip_layers leaves no layer; keep at least one"),
    "a layer that is a share": (
        skip(20.5), "skip_layers[0] is 20.5; layers are whole numbers from 0 on; write a whole number",
    ),
    "a layer with a point": (skip(20, 21.0), "skip_layers[1] is 21.0; layers are whole numbers from 0 on; write 21"),
    "a layer that is true": (skip(True), "skip_layers[0] is True; layers are whole numbers"),
    "a layer that is a text": (skip("20"), "skip_layers[0] is '20'; layers are whole numbers"),
    "no neuron": (
        wide(0), "layer 0 asks for width 0; its parent has 1 to 16384; to leave the layer out, name it in skip_layers",
    ),
    "fewer than none": (wide(*WIDE[:34], -8192), "layer 34 asks for width -8192; its parent has 1 to 16384"),
    "wider than the parent": (
        wide(16385), "layer 0 asks for width 16385; its parent has 1 to 16384; ask for 16384 or less",
    ),
    "one layer wider than the parent": (
        wide(*WIDE[:30], 32768, skipped=(20, 21, 22, 23)), "layer 34 asks for width 32768; its parent has",
    ),
    "a width that is a share": (
        wide(0.5), "layer 0 asks for width 0.5; widths are whole numbers; write a whole number",
    ),
    "a width with a point": (wide(8192.0), "layer 0 asks for width 8192.0; widths are whole numbers; write 8192"),
    "a width that is true": (wide(True), "layer 0 asks for width True; widths are whole numbers"),
    "a width that is a text": (wide("8192"), "layer 0 asks for width '8192'; widths are whole numbers"),
    "a width too few": (
        wide(*WIDE[:34]), "34 ffn_widths for 35 kept layers; give one per kept layer, or a single width for all",
    ),
    "widths of skipped layers": (
        wide(*WIDE, skipped=(20, 21, 22, 23, 24)),
        ("35 ffn_widths for 30 kept layers; give one per kept layer, or a single width for all (leave out those"
        " of skipped layers)"),
    ),
    "a row of no name there": (
        SliceConfig(name="custom", row="Config for E2.98B (blok-level)"),
        "did you mean 'Config for E2.98B (block-level)'?",
    ),
    "a row by its short name": (
        SliceConfig(name="custom", row="e2_98b_layer"), "did you mean 'Config for E2.98B (layer-level)'?",
    ),
    "a row like none": (
        SliceConfig(name="custom", row="zzz"), "Google's table has no row 'zzz'; it has 'Main model', ",
    ),
    "a row and layers": (
        SliceConfig(name="custom", row="Main model", skip_layers=[20]),
        "row and skip_layers are given, but a row says which layers",
    ),
    "a file, a row and widths": (
        SliceConfig(name="custom", csv="a.csv", row="a", ffn_widths=[8]), "leave out ffn_widths, or csv and row",
    ),
    "a file and widths": (
        SliceConfig(name="custom", csv="a.csv", ffn_widths=[8], skip_layers=[1]),
        "leave out skip_layers and ffn_widths, or csv",
    ),
    "a name that is a place": (SliceConfig(name="../x"), "name is '../x'; it must be of letters, digits and _"),
    "a name of several words": (SliceConfig(name="half (a)"), "behind the first; write slice.name=half_a"),
    "a name that is an option": (SliceConfig(name="-x"), "write slice.name=x"),
    "a name of two lines": (SliceConfig(name="x\n"), "name is 'x\\n'; it must be"),
    "a name that is a directory": (SliceConfig(name=".."), "write slice.name=mine"),
    "no name": (SliceConfig(name=""), "write slice.name=mine"),
    "a file that is not there": (
        SliceConfig(name="custom", csv="no.csv", row="a"), "no.csv: the table of slices cannot be read (No such file",
    ),
    "a directory for a file": (
        SliceConfig(name="custom", csv="/", row="a"),
        "/: the table of slices cannot be read (Is a directory); give a CSV file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REQUESTS)
def test_a_sub_model_that_cannot_be_is_refused(what: str) -> None:
    written, message = REQUESTS[what]
    with pytest.raises(SliceError, match=re.escape(message)):
        SliceSpec.resolve(written_in(written), E4B)


def row(*, name: str = "mine", layers: str = "2", size: str = "1.91", accuracy: str = "50.90%",
        widths: str = '"[8, 8]"', skipped: str = "") -> str:  # fmt: skip
    """A table of one row, with one cell as it should not be."""
    return f"{HEAD}\n{','.join((name, layers, size, accuracy, widths, skipped))}"


# As a file, and the part of the message that a user acts on.
TABLES: dict[str, tuple[str | bytes, str]] = {
    "code in a list of widths": (
        row(widths="\"[__import__('os').system('true'), 8]\""),
        ("row 2, column 'FFN Hidden Dims', entry 1: \"__import__('os').system('true')\" is found, and is not computed;"
        " allowed are whole numbers and products of them, as 16384 or 2_048 * 8; write the number"),
    ),
    "code for a list of widths": (row(widths="list(range(2))"), "'list(range(2))' is found; write a list in brackets"),
    "a comprehension": (row(widths='"[8 for _ in range(2)]"'), "entry 1: '8 for _ in range(2)' is found"),
    "a repeated list": (
        row(widths="[8] * 2"), "column 'FFN Hidden Dims': '[8] * 2' is found; write a list in brackets",
    ),
    "a name": (row(widths='"[8, WIDE]"'), "entry 2: 'WIDE' is found, and is not computed"),
    "a call": (row(widths='"[8, int(8)]"'), "entry 2: 'int(8)' is found, and is not computed"),
    "a width with a point": (row(widths='"[8, 8.0]"'), "entry 2: '8.0' is found, and is not computed"),
    "a power": (row(widths='"[8, 2**13]"'), "entry 2: '2**13' is found, and is not computed"),
    "a sum": (row(widths='"[8, 4 + 4]"'), "entry 2: '4 + 4' is found, and is not computed"),
    "a sign": (row(widths='"[8, -8]"'), "entry 2: '-8' is found, and is not computed"),
    "other digits": (row(widths='"[8, ٨]"'), "entry 2: '٨' is found, and is not computed"),
    "half a product": (row(widths='"[8, 8 *]"'), "entry 2: '8 *' is found, and is not computed"),
    "a list in a list": (row(widths='"[[8, 8]]"'), "entry 1: '[8' is found, and is not computed"),
    "an entry too many": (row(widths='"[8, 8, ]"'), "entry 3: '' is found, and is not computed"),
    "a huge product": (
        row(widths='"[8, 999999 * 999999]"'), "entry 2: '999999 * 999999' is found; a width is 1 to 1,000,000",
    ),
    "a product without end": (
        row(widths=f'"[8, {"9 * " * 5000}9]"'), "entry 2: '9 * 9 * 9 * 9 * 9 * 9 * 9 * 9 * 9 * 9 * …' is found",
    ),
    "a number without end": (row(widths=f'"[8, {"9" * 9000}]"'), "…' is found; a width is 1 to 1,000,000 neurons"),
    "a width of nothing": (row(widths='"[8, 8 * 0]"'), "entry 2: '8 * 0' is found; a width is 1 to 1,000,000 neurons"),
    "no widths": (
        row(layers="0", widths="[]"), "'# Layers': it says no layers, but 'FFN Hidden Dims' has no widths; give",
    ),
    "layers that are not the widths'": (
        row(layers="3"), "row 2, column '# Layers': it says 3 layers, but 'FFN Hidden Dims' has 2 widths; give as many",
    ),
    "layers in words": (row(layers="two"), "column '# Layers': 'two' is found; write a whole number from 0 on"),
    "a size in words": (
        row(size="small"), "column '# Effective Params (B)': 'small' is found; write a number, as 2.98",
    ),
    "an accuracy in words": (
        row(accuracy="good"), "column 'MMLU PT accuracy': 'good' is found; write a share, as 59.50%",
    ),
    "no name": (row(name=" "), "row 2, column 'name': ' ' is found; give the slice a name"),
    "a name twice": (
        row() + "\n" + row().splitlines()[1], "row 3, column 'name': a row above is also named 'mine'; rename",
    ),
    "a skipped layer from the end": (
        row(skipped="[-1]"), "column 'Layers Skipped', entry 1: '-1' is found; write a whole",
    ),
    "code for a skipped layer": (
        row(skipped="[exit()]"), "column 'Layers Skipped', entry 1: 'exit()' is found; write a whole",
    ),
    "a skipped layer twice": (row(skipped='"[1, 1]"'), "column 'Layers Skipped': skip_layers has [1] more than once"),
    "skipped layers out of order": (
        row(skipped='"[2, 1]"'), "layers stand in ascending order: write skip_layers=[1,2]",
    ),
    "nan for no layer": (row(skipped="nan"), "column 'Layers Skipped': 'nan' is found; write a list in brackets"),
    "lists without quotes": (
        row(widths="[8, 8]"), "row 2: 7 cells, but there are 6 columns; put lists between double quotes",
    ),
    "a row cut short": (f"{HEAD}\nmine,2", "row 2: 2 cells, but there are 6 columns"),
    "a quote that never ends": (f'{HEAD}\nmine,2,1.91,,"[8, 8]', "not CSV (unexpected end of data)"),
    "another header": ("name,layers\nmine,2", "row 1: there is no '# Layers', '# Effective Params (B)',"),
    "a column nobody knows": (f"{HEAD},Notes\n", "row 1: nobody knows 'Notes'; the first line must be name,# Layers,"),
    "columns in another order": (",".join(sorted(HEADER)) + "\n", "row 1: the columns are in another order, or twice"),
    "a header alone": (HEAD + "\n", "there is a header, but no row below it; add a row per slice"),
    "nothing": ("", "the file is empty; its first line must be name,# Layers"),
    "blank lines": ("\n\n", "the file is empty"),
    "another encoding": ("name,größe\n".encode("latin-1"), "not UTF-8 text (invalid start byte at byte 7)"),
    "a file of weights": (b"\x80\x02" * 100, "not UTF-8 text"),
}  # fmt: skip


@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_is_not_as_it_should_be_is_refused(what: str, tmp_path: Path) -> None:
    content, message = TABLES[what]
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SliceError, match=re.escape(message)) as refused:
        read_slices(path)
    assert str(refused.value).startswith(str(path))


def test_a_file_without_a_row_asks_for_one_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(row() + "\n" + row(name="other").splitlines()[1])
    with pytest.raises(SliceError, match=r"choose slice\.row= one of 'mine', 'other'"):
        written_in(SliceConfig(name="custom", csv=str(path)))


def test_a_row_made_for_another_parent_is_refused() -> None:
    small = TextConfig.parse({"num_hidden_layers": 20, "num_kv_shared_layers": 5})
    with pytest.raises(SliceError, match=r"slice 'e2b': skip_layers has \[20, 21, 22, 23, 24\], but the parent has"):
        SliceSpec.resolve(written_in(SliceConfig(name="custom", row="Config for official E2B Model")), small)
