# SPDX-License-Identifier: Apache-2.0
"""Compiled layers compute what plain ones do, are compiled for any length at once, and runs resume with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.errors import ConfigError
from model.recompute import RecomputeConfig, TextRecompute
from tests.trainer.parts import losses, trainer_config
from tests.trainer.test_processes import assert_the_same_but_for_rounding, launch_two
from trainer.compiling import refuse_uncompilable

ROOT = Path(__file__).parents[2]


def told(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a module prints that is run as a program."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def run(output: Path, **wishes: Any) -> int:
    """Train the tiny model in a process of its own; its exit status."""
    return told("tests.trainer.program", json.dumps({"output": str(output), **wishes})).returncode


def saved(output: Path) -> dict[str, torch.Tensor]:
    """The newest weights of a run."""
    return load_file(next((output / "weights").glob("*.safetensors")))


def test_without_a_compiler_a_compiled_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    with pytest.raises(ConfigError, match=r"by a C\+\+ compiler, and finds none; install g\+\+"):
        refuse_uncompilable(trainer_config(tmp_path, compile=True))
    refuse_uncompilable(trainer_config(tmp_path))


def test_a_model_that_is_divided_up_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"divided up among processes \(ACCELERATE_USE_FSDP\)"):
        refuse_uncompilable(trainer_config(tmp_path, compile=True))


def test_what_is_recomputed_operation_by_operation_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.recompute\.text is selective"):
        trainer_config(tmp_path, compile=True, recompute=RecomputeConfig(text=TextRecompute.selective))


@pytest.mark.slow
@pytest.mark.timeout(900)  # compilers take long where cores are busy
def test_compiled_layers_give_the_gradients_of_plain_ones_and_other_lengths_bring_no_code() -> None:
    done = told("tests.trainer.compiled")
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # In float64, so that formulas are compared and not roundings. In float32 the sparse layer's threshold magnifies
    # them: gradients are 1e-5 to 5e-5 off exact ones by plain code and by compiled code, each in its own way.
    assert max(found["apart"].values()) <= 1e-10, found["apart"]
    first_batch, *others = found["graphs"][1:]  # two sub-models each
    assert first_batch > 0
    assert set(others) == {first_batch}


@pytest.mark.slow
@pytest.mark.timeout(900)  # compilers take long where cores are busy
def test_a_compiled_run_goes_on_bitwise_is_as_a_plain_one_but_for_rounding_and_saves_its_names(tmp_path: Path) -> None:
    straight, killed, plain = (tmp_path / name for name in ("straight", "killed", "plain"))
    wishes = {"adapter": True, "save_every": 1}  # with dropout, and rows that are measured
    assert run(straight, compile=True, **wishes) == 0
    assert run(killed, compile=True, kill_at=2, **wishes) != 0
    assert run(killed, compile=True, resume=True, **wishes) == 0
    assert run(plain, **wishes) == 0
    assert losses(straight) == losses(killed)
    assert all(torch.equal(saved(straight)[name], own) for name, own in saved(killed).items())
    assert saved(straight).keys() == saved(plain).keys()
    assert_the_same_but_for_rounding(straight, plain, loss=1e-4, later_norms=4e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)  # compilers take long where cores are busy
def test_two_processes_train_compiled_layers_as_one_does_plain_ones(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(one, batch_size=4, max_steps=2) == 0
    launch_two({"output": str(two), "batch_size": 2, "max_steps": 2, "compile": True})
    assert saved(two).keys() == saved(one).keys()
    assert_the_same_but_for_rounding(one, two, loss=1e-4, later_norms=4e-3)
