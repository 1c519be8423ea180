# SPDX-License-Identifier: Apache-2.0
"""Which sub-model a command means: said in layers and widths, or by a row of a table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model.config import ModelConfig, TextConfig
from model.errors import ConfigError
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.table import published_slices, write_slices
from recipes.cli import main
from recipes.sizes import find_slice, resolve_sizes, resolve_slice
from tests.tiny import TINY_TEXT
from trainer.elastic import ElasticConfig, ElasticPolicy, SliceSampler

E4B = TextConfig.parse({})
E2B = "Config for official E2B Model"
ROW = "Half, and (a block) shorter"
HALF = SliceSpec(ROW, (0, 1, 2, 6, 7, 8), (24, 24, 24, 24, 24, 48))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "my slices (1).csv"
    write_slices(path, {"whole": SliceSpec.full(TINY_TEXT), ROW: HALF}, TINY_TEXT)
    return path


def shape_of(directory: Path) -> tuple[int, tuple[int, ...]]:
    text = ModelConfig.read(directory).text
    return text.num_hidden_layers, text.intermediate_size


def test_a_row_of_a_table_is_sliced_without_naming_a_slice(
    weights: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["slice", f"checkpoint={weights}", f"slice.csv={table}", f"slice.row={ROW}", f"output={tmp_path / 'out'}"]
    assert main(command) == 0
    assert shape_of(tmp_path / "out") == (6, HALF.ffn_widths)
    assert capsys.readouterr().out.startswith("half_and_a_block_shorter: ")


def test_layers_and_widths_are_sliced_without_naming_a_slice(weights: Path, tmp_path: Path) -> None:
    said = ["slice.skip_layers=[3,4,5]", "slice.ffn_widths=[24,24,24,24,24,48]"]
    assert main(["slice", f"checkpoint={weights}", *said, f"output={tmp_path / 'out'}"]) == 0
    assert shape_of(tmp_path / "out") == (6, HALF.ffn_widths)


def test_a_size_of_files_may_be_written_as_a_budget_is(weights: Path, tmp_path: Path) -> None:
    words = ["slice", f"checkpoint={weights}", "slice=full", f"output={tmp_path / 'out'}"]
    assert main([*words, "max_shard_bytes=1.5e5"]) == 0
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(sizes) > 1
    assert max(sizes) < 200_000


def test_a_row_of_googles_table_is_its_file_in_conf() -> None:
    spec = resolve_slice(SliceConfig(name="custom", row=E2B), E4B)
    assert spec == resolve_slice(SliceConfig(name="e2b", skip_layers=[20, 21, 22, 23, 24], ffn_widths=[8192]), E4B)


def test_nothing_said_is_no_slice() -> None:
    told = r"slice: must be given: slice=e1_96b_layer\|.*, or slice\.row=NAME.*; slice=full keeps all layers;"
    with pytest.raises(ConfigError, match=told):
        find_slice(SliceConfig(name="custom"))


def test_everything_is_a_slice_if_it_is_asked_for() -> None:
    assert resolve_slice(SliceConfig(name="full"), E4B) == SliceSpec.full(E4B)


def test_sizes_may_name_rows() -> None:
    sizes = {"e2b": SliceConfig(name="e2b", row=E2B), "main": SliceConfig(name="main", row="Main model")}
    expected = [SliceSpec.resolve(published_slices()[name], E4B) for name in (E2B, "Main model")]
    assert resolve_sizes(sizes, E4B) == expected
    sampler = SliceSampler(ElasticConfig(policy=ElasticPolicy.sample, slices=sizes), E4B, seed=0)
    assert set(sampler.levels) == set(expected)


def test_rows_are_found_without_torch() -> None:
    code = "import sys, recipes.sizes, model.slicing.advice; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
