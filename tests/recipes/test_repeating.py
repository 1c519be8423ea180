# SPDX-License-Identifier: Apache-2.0
"""The command line of one job of several means what the job had."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from recipes.quoting import quote, quote_free_text
from recipes.repeating import command_of, swept_words
from recipes.slice import SliceRecipe
from recipes.train import TrainRecipe


def meant(word: str) -> Any:
    """The value of a word in Hydra's grammar."""
    override = OverridesParser.create().parse_override(word)
    return OmegaConf.create({"value": override.value()})["value"]


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@pytest.mark.parametrize("key", ["output", "slice.name", "checkpoint"])
def test_a_swept_value_is_repeated_to_the_letter(key: str, name: str) -> None:
    passed = f"{key}={quote(name)}"  # as Hydra gives it to a job: 'a b',c with its quotes
    command = command_of([passed], "slice", [f"{key}={quote(name)},x", "--multirun"], SliceRecipe)
    repeated = shlex.split(command)
    assert repeated[:2] == ["matslice", "slice"]
    assert meant(quote_free_text(repeated[2], SliceRecipe)) == meant(passed) == name


@pytest.mark.parametrize(
    ("passed", "value"),
    [
        ("output=a\\ b", "a b"), ("output=./a b", "./a b"), ("output=null", None), ("output='null'", "null"),
        ("output='~/x'", "~/x"), ("output=12", "12"), ("vocabulary.corpus=['a, b',c\\ d]", ["a, b", "c d"]),
    ],
)  # fmt: skip
def test_a_swept_place_is_repeated_as_it_was(passed: str, value: object) -> None:
    (word,) = shlex.split(command_of([passed], "slice", ["output=a,b"], SliceRecipe))[2:]
    assert meant(quote_free_text(word, SliceRecipe)) == value


def test_what_is_not_swept_stands_as_its_user_wrote_it() -> None:
    arguments = ["output=out of/${slice.name}", "slice=e2b,full", "~/x=1", "--config-dir", "my conf", "-m"]
    passed = ['output="out of/${slice.name}"', "slice=e2b"]
    assert shlex.split(command_of(passed, "slice", arguments, SliceRecipe)) == [
        "matslice", "slice", "output=out of/${slice.name}", "slice=e2b", "--config-dir", "my conf"
    ]  # fmt: skip
    assert swept_words(passed, arguments, SliceRecipe) == ["slice=e2b"]


@pytest.mark.parametrize(
    ("launcher", "kept"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], []),
        (
            ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=8"],
            ["--multirun", "hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=8"],
        ),
    ],
)
def test_a_job_that_was_submitted_is_submitted_again(launcher: list[str], kept: list[str]) -> None:
    arguments = ["optim.learning_rate=1e-3,1e-4", "--multirun", *launcher, "hydra.sweep.dir=x"]
    command = command_of(["optim.learning_rate=1e-3"], "train", arguments, TrainRecipe)
    assert shlex.split(command) == ["matslice", "train", "optim.learning_rate=1e-3", *kept]


def test_a_recipe_of_two_words_is_written_in_two() -> None:
    assert command_of([], "data_preview", [], SliceRecipe) == "matslice data preview"
