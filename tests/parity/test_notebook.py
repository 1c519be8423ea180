# SPDX-License-Identifier: Apache-2.0
"""The public notebook's slices beside ours: what of them transformers 5 loads, and what the rest breaks at."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3nTextConfig

from model.checkpoint.load import load
from model.checkpoint.names import ours
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.spec import SliceConfig, SliceSpec
from model.slicing.submodel import SubModel
from tests.laws.drawn import assert_same_tensors
from tests.parity.notebook import MENDED, Mistakes, notebook_slice
from tests.parity.reference import relative
from tests.parity.sliced import (
    CONFIG,
    LAYERS,
    NARROW,
    PROMPTS,
    SPARSE,
    loaded_by_transformers,
    official_slices,
    parent,
    their_scores,
    write_parent,
)

pytestmark = pytest.mark.parity

OFFICIAL = official_slices()
WITHOUT_SKIPS = {name for name, spec in OFFICIAL.items() if len(spec.kept_layers) == LAYERS}
FLOAT_ZEROS = Mistakes(integer_zeros=False)  # the first mistake mended by hand, as its users do
OFTEN = "Config for E1.96B (layer-level)"  # the row that skips layers and mixes widths
SHARD_BYTES = 200_000
SPREAD = 0.07


@pytest.fixture(scope="module")
def parent_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text") / "parent"
    write_parent(parent(CONFIG, SPREAD), directory)
    (directory / "tokenizer.json").write_text("{}")
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 106]}')
    return directory


def skipped(spec: SliceSpec) -> list[int]:
    return [layer for layer in range(LAYERS) if layer not in spec.kept_layers]


def cut_by_notebook(source: Path, target: Path, spec: SliceSpec, mistakes: Mistakes) -> None:
    notebook_slice(
        source, target, skipped(spec), spec.ffn_widths, mistakes=mistakes, max_shard_bytes=SHARD_BYTES
    )  # fmt: skip


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """All of a directory, by their published names."""
    return {ours(name): tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def breaks_at(directory: Path) -> str:
    """What transformers says of a directory that it does not load; nothing if it does."""
    try:
        AutoModelForCausalLM.from_pretrained(directory)
    except (StrictDataclassError, ValueError) as error:
        return str(error)
    return ""


def test_no_official_slice_of_the_notebook_loads_in_transformers(parent_directory: Path, tmp_path: Path) -> None:
    for number, spec in enumerate(OFFICIAL.values()):
        cut_by_notebook(parent_directory, tmp_path / str(number), spec, Mistakes())
    told = [breaks_at(tmp_path / str(number)) for number in range(len(OFFICIAL))]
    assert len(told) == 16
    # Before anything else: dense layers' sparsity is the whole number 0 there, where list[float] is asked for.
    assert all(f"Invalid item at index {SPARSE} in list 'activation_sparsity_pattern'" in why for why in told)


def test_the_notebook_itself_stops_at_that_config_in_transformers() -> None:
    config = Gemma3nTextConfig()
    with pytest.raises(StrictDataclassError, match="activation_sparsity_pattern"):
        config.activation_sparsity_pattern = [0.95] * SPARSE + [0] * (LAYERS - SPARSE)


@pytest.mark.slow
def test_with_float_zeros_those_that_skip_layers_still_do_not_load(parent_directory: Path, tmp_path: Path) -> None:
    told: dict[str, str] = {}
    for number, (name, spec) in enumerate(OFFICIAL.items()):
        cut_by_notebook(parent_directory, tmp_path / str(number), spec, FLOAT_ZEROS)
        told[name] = breaks_at(tmp_path / str(number))
    assert {name for name, why in told.items() if not why} == WITHOUT_SKIPS
    assert len(WITHOUT_SKIPS) == 14
    for name in told.keys() - WITHOUT_SKIPS:
        assert "num_hidden_layers" in told[name]
        assert "layer_types" in told[name]


@pytest.mark.parametrize("name", [OFTEN, *(pytest.param(n, marks=pytest.mark.slow) for n in OFFICIAL if n != OFTEN)])
def test_mended_it_writes_the_tensors_we_write_and_a_config_that_means_the_same(
    parent_directory: Path, tmp_path: Path, name: str
) -> None:
    cut_by_notebook(parent_directory, tmp_path / "theirs", OFFICIAL[name], MENDED)
    slice_checkpoint(parent_directory, tmp_path / "ours", SubModel(OFFICIAL[name]))
    assert_same_tensors(tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours"))
    configs = [AutoConfig.from_pretrained(tmp_path / kind).to_dict() for kind in ("theirs", "ours")]
    where = [config.pop("_name_or_path") for config in configs]
    assert where[0] != where[1]
    assert configs[0] == configs[1]


def test_mended_its_slice_loads(parent_directory: Path, tmp_path: Path) -> None:
    spec = OFFICIAL["Config for official E2B Model"]
    cut_by_notebook(parent_directory, tmp_path / "slice", spec, MENDED)
    theirs = loaded_by_transformers(tmp_path / "slice")
    with torch.no_grad():
        expected = parent(CONFIG, SPREAD)(PROMPTS, spec).logits[PROMPTS.mask]
    assert relative(expected, their_scores(theirs, PROMPTS)) <= 1e-5


def test_a_slice_of_a_slice_loads_and_computes_something_else(parent_directory: Path, tmp_path: Path) -> None:
    # In the slice, layer 18 is the last with keys and values; the notebook still counts from 20 on.
    first = SliceSpec.resolve(SliceConfig(name="without_7", skip_layers=[7]), CONFIG.text)
    narrow = [NARROW] * (LAYERS - 1)
    slice_checkpoint(parent_directory, tmp_path / "slice", SubModel(first))
    right = load(tmp_path / "slice", dtype=torch.float32)
    second = SliceSpec.resolve(SliceConfig(name="narrow", ffn_widths=narrow), right.config.text)
    with torch.no_grad():
        expected = right(PROMPTS, second).logits[PROMPTS.mask]
    only = dataclasses.replace(MENDED, numbers_of_e4b=True)
    differences = []
    for number, mistakes in enumerate((only, MENDED)):
        notebook_slice(tmp_path / "slice", tmp_path / str(number), [], narrow, mistakes=mistakes)
        theirs = loaded_by_transformers(tmp_path / str(number))
        differences.append(relative(their_scores(theirs, PROMPTS), expected))
    assert differences[0] > 0.01
    assert differences[1] <= 1e-5


def test_it_forgets_how_answers_end(parent_directory: Path, tmp_path: Path) -> None:
    spec = OFFICIAL["Config for E2.54B (layer-level)"]
    for name, mistakes in (("published", FLOAT_ZEROS), ("mended", MENDED)):
        cut_by_notebook(parent_directory, tmp_path / name, spec, mistakes)
        assert (tmp_path / name / "tokenizer.json").is_file()
    ends = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name).generation_config.eos_token_id
        for name in ("published", "mended")
    ]
    assert ends == [1, [1, 106]]


@pytest.mark.parametrize("layer", [18, 19])
def test_it_too_refuses_to_skip_the_last_producers(parent_directory: Path, tmp_path: Path, layer: int) -> None:
    with pytest.raises(ValueError, match="cannot be skipped"):
        notebook_slice(parent_directory, tmp_path / "slice", [layer], [NARROW])


def test_it_runs_as_a_command_of_its_own(parent_directory: Path, tmp_path: Path) -> None:
    arguments = [str(parent_directory), str(tmp_path / "slice"), "--skip", "[20, 21, 22, 23, 24]", "--widths", "[32]"]
    command = [sys.executable, "-m", "tests.parity.notebook", *arguments, "--mended", "--shard-bytes", "100000"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    index = json.loads((tmp_path / "slice" / "model.safetensors.index.json").read_text())
    tensors = tensors_of(tmp_path / "slice")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert len(set(index["weight_map"].values())) > 3
    assert load(tmp_path / "slice", dtype=torch.float32).config.text.intermediate_size == (NARROW,) * 30
