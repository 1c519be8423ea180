# SPDX-License-Identifier: Apache-2.0
"""The files of conf/slice that Google published say what Google's table says, and count what is there."""

from __future__ import annotations

import re
from importlib import resources

import pytest
import yaml

from model.config import TextConfig
from model.slicing.count import Layout, count_effective_parameters, count_parameters, text_shapes
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from model.slicing.table import SliceRow, published_rows

E4B = TextConfig.parse({})
ROWS = {row.written.name: row for row in published_rows()}


def content(name: str) -> str:
    return (resources.files("conf") / "slice" / f"{name}.yaml").read_text(encoding="utf-8")


def spec_of(row: SliceRow) -> SliceSpec:
    return SliceSpec.resolve(row.written, E4B)


@pytest.mark.parametrize("name", ROWS)
def test_a_published_slice_is_its_row_of_the_table(name: str) -> None:
    assert SliceSpec.resolve(SliceConfig(**yaml.safe_load(content(name))), E4B) == spec_of(ROWS[name])


@pytest.mark.parametrize("name", ROWS)
def test_what_is_said_of_a_published_slice_is_so(name: str) -> None:
    row, shapes = ROWS[name], text_shapes(E4B, Layout.published)
    said = " ".join(line.removeprefix("#").strip() for line in content(name).splitlines() if line.startswith("#"))
    sub = SubModel(spec_of(row))
    effective = count_effective_parameters(shapes.items(), sub, E4B)
    text = count_parameters(shapes.items(), sub, E4B)
    assert said.startswith(f'"{row.name}" of Google\'s table: ')
    assert f" {effective:,} effective parameters and {text:,} of text in all" in said
    assert f"the table says {row.size} billion, and MMLU {row.accuracy} of the pre-trained checkpoint" in said
    assert "(google/gemma3n-slicing-configs)" in said


@pytest.mark.parametrize("name", ROWS)
def test_the_layers_that_are_said_to_be_wide_are(name: str) -> None:
    spec = spec_of(ROWS[name])
    wide = {layer for layer, width in zip(spec.kept_layers, spec.ffn_widths, strict=True) if width == 16384}
    first = content(name).splitlines()[0]
    if found := re.search(r"full width in layers? ([\d, -]+)\.$", first):
        ends = [list(map(int, run.split("-"))) for run in found[1].split(", ")]
        assert {layer for run in ends for layer in range(run[0], run[-1] + 1)} == wide
    else:
        assert first.endswith("all layers at full width." if wide else "every feed-forward network half as wide.")
    assert ("block 20-24 left out" in first) == (len(spec.kept_layers) == 30)
