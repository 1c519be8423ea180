# SPDX-License-Identifier: Apache-2.0
"""Slices load in transformers as they are, and compute there what they compute here: scores, and answers.

Compared are three: transformers on the directory that was written, our model loaded from it, and the parent
with the spec, which never was on disk in part.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma3nForCausalLM

from model.checkpoint.load import load
from model.checkpoint.names import ours as published
from model.checkpoint.names import unused
from model.slicing.checkpoint import slice_checkpoint
from model.slicing.config import slice_text_config
from model.slicing.dead_kv import DeadKV
from model.slicing.spec import SliceSpec
from model.slicing.submodel import SubModel
from tests.parity.reference import relative
from tests.parity.sliced import (
    CONFIG,
    INPUTS,
    PROMPTS,
    loaded_by_transformers,
    official_slices,
    our_answers,
    parent,
    random_slice,
    their_answers,
    their_scores,
    write_parent,
)

pytestmark = pytest.mark.parity

OFFICIAL = official_slices()
# Every day these, whose layers and kinds of widths differ; all sixteen are shown together by the slow tests.
DAILY = (
    "Config for official E2B Model",
    "Config for E1.96B (layer-level)",
    "Config for E2.98B (layer-level)",
    "Config for E2.98B (block-level)",
)
RANDOM = [
    pytest.param(number, marks=() if number < 4 else pytest.mark.slow, id=f"random {number}") for number in range(212)
]
SPREAD = 0.07  # larger weights let float32 rounding grow to 1e-5 through 35 layers, in either implementation
TOLERANCE = 1e-5  # fp32 sums in another order, of the largest score


@pytest.fixture(scope="module")
def parent_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("text") / "parent"
    write_parent(parent(CONFIG, SPREAD), directory)
    return directory


def assert_equal_in_transformers(parent_directory: Path, target: Path, spec: SliceSpec) -> list[list[int]]:
    """Slice, load three times, compare scores with either padding, and answers past the window; the answers."""
    slice_checkpoint(parent_directory, target, SubModel(spec))
    theirs, ours, whole = loaded_by_transformers(target), load(target, dtype=torch.float32), parent(CONFIG, SPREAD)
    assert isinstance(theirs, Gemma3nForCausalLM)
    for inputs in INPUTS.values():
        expected = their_scores(theirs, inputs)
        with torch.no_grad():
            assert relative(ours(inputs).logits[inputs.mask], expected) <= TOLERANCE
            assert relative(whole(inputs, spec).logits[inputs.mask], expected) <= TOLERANCE
    answers = our_answers(ours, PROMPTS)
    assert answers == their_answers(theirs, PROMPTS, CONFIG)
    return answers


@pytest.mark.parametrize(
    "name", [*DAILY, *(pytest.param(name, marks=pytest.mark.slow, id=f"all: {name}") for name in OFFICIAL)]
)
def test_an_official_slice_computes_in_transformers_what_it_computes_here(
    parent_directory: Path, tmp_path: Path, name: str
) -> None:
    answers = assert_equal_in_transformers(parent_directory, tmp_path / "slice", OFFICIAL[name])
    assert len({token for row in answers for token in row}) > 12  # of 48; one said again and again would prove little


@pytest.mark.parametrize("number", RANDOM)
def test_any_legal_slice_computes_in_transformers_what_it_computes_here(
    parent_directory: Path, tmp_path: Path, number: int
) -> None:
    assert_equal_in_transformers(parent_directory, tmp_path / "slice", random_slice(number))


def test_no_two_of_the_slices_are_the_same() -> None:
    specs = [*OFFICIAL.values(), *(random_slice(number) for number in range(len(RANDOM)))]
    assert len({spec.shape for spec in specs}) == len(specs) == 16 + 212


@pytest.mark.parametrize("dead_kv", DeadKV)
def test_slices_load_with_and_without_keys_and_values_that_nothing_reads(
    parent_directory: Path, tmp_path: Path, dead_kv: DeadKV
) -> None:
    spec = OFFICIAL["Config for official E2B Model"]
    slice_checkpoint(parent_directory, tmp_path / "slice", SubModel(spec), dead_kv=dead_kv)
    theirs, whole = loaded_by_transformers(tmp_path / "slice"), parent(CONFIG, SPREAD)
    with torch.no_grad():
        assert relative(whole(PROMPTS, spec).logits[PROMPTS.mask], their_scores(theirs, PROMPTS)) <= TOLERANCE
    dead = unused(slice_text_config(CONFIG.text, spec)).keys()
    assert len(dead) == 3 * 10  # of the ten readers that are left
    tensors = {published(name): t for name, t in load_file(tmp_path / "slice" / "model.safetensors").items()}
    assert dead & tensors.keys() == (set() if dead_kv is DeadKV.drop else dead)
    projections = [tensors[name] for name in dead & tensors.keys() if "_proj" in name]
    assert all(tensor.any() == (dead_kv is DeadKV.keep) for tensor in projections)
