# SPDX-License-Identifier: Apache-2.0
"""What is the same for every recipe: help, showing the config, sweeps, tracebacks, text to the letter."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors import SafetensorError

from model.errors import ConfigError
from recipes.cli import RECIPES, main, schema_of, spoken
from recipes.program import start
from recipes.schema import choices
from recipes.slice import SliceRecipe

ROOT = Path(__file__).parents[2]


def test_matslice_alone_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"matslice {spoken(name)} " in shown for name in RECIPES)


def test_there_is_a_schema_and_a_config_for_every_recipe() -> None:
    assert sorted(RECIPES) == choices("")
    assert all(dataclasses.is_dataclass(schema_of(name)) for name in RECIPES)


@cache
def help_of(recipe: str) -> str:
    """What ``--help`` shows."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main([recipe, "--help"]) == 0
    return shown.getvalue()


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_says_what_can_be_chosen(recipe: str) -> None:
    shown = help_of(recipe)
    assert (schema_of(recipe).__doc__ or "").splitlines()[0] in shown
    nothing_alone = ("train", "estimate", "demo", "plan", "data_preview")
    assert "output: ???" in shown or "checkpoint: ???" in shown or recipe in nothing_alone
    if recipe == "train":
        assert "optim: adafactor, adamw" in shown


LIGHT = """
import sys
from recipes.cli import main

status = main(sys.argv[1:])
heavy = [name for name in ("torch", "huggingface_hub") if name in sys.modules]
sys.exit(f"imported: {heavy}" if heavy else status)
"""


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--help"], 0, "matslice slice "),
        (["slice", "--help"], 0, "Cut a smaller model out of a checkpoint"),
        (["slice", "--cfg", "job", "slice=e2b"], 0, "ffn_widths"),
        (["slice", "checkpoint=nowhere", "output=x", "slice=full"], 2, "no directory 'nowhere'"),
        (["slice", "checkpoint=.", "outptu=x"], 2, "did you mean 'output'?"),
    ],
    ids=str,
)
def test_what_computes_nothing_waits_for_no_torch(words: list[str], status: int, told: str, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert told in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("train", "data.long_rows: one of refuse, skip, truncate\n"),
        ("train", "data.long_audio: sound of more than 30 s: refuse, truncate, or chunk it into several\n"),
        ("train", "modalities: towers to load, beside text; null = all there are; some of text, vision, audio\n"),
        ("train", "adapter.targets: some of attention, ffn, all_linear, text, "),
        ("evaluate", "long_audio: sound of more than 30 s: refuse, truncate, or chunk it into several\n"),
        ("generate", "image: a file, or a list of files\n"),
        ("generate", "precision: one of fp32, bf16\n"),
    ],
)
def test_help_says_what_values_mean(recipe: str, told: str) -> None:
    assert f"\n{told}" in help_of(recipe)


INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from recipes.cli import main

sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_while_torch_is_imported_is_told_in_a_word() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "train"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


def test_cfg_job_shows_the_config_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slice", "checkpoint=nowhere", "slice=e2b", "output=x", "--cfg", "job"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert OmegaConf.select(shown, "slice.ffn_widths") == [8192]


def test_a_sweep_runs_every_combination_and_survives_a_bad_one(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Hydra notes there what was swept
    words = ["slice", f"checkpoint={weights}", "slice=full", "slice.name=w${slice.ffn_widths.0}"]
    assert main([*words, "slice.ffn_widths=[24],[99],[16]", "output=./a b/${slice.name}", "--multirun"]) == 2
    assert sorted(path.name for path in (tmp_path / "a b").iterdir()) == ["w16", "w24"]
    told = capsys.readouterr().err.splitlines()
    (error,) = [line for line in told if line.startswith("error: ")]
    assert error.startswith("error: job 1 (slice.ffn_widths=[99]): slice 'w99': layer 0 asks for width 99")
    assert told[-3] == "3 jobs: 2 done, 1 failed; out/multirun/jobs.jsonl"
    assert told[-2].startswith("job 1 failed: slice 'w99': layer 0 asks for width 99")
    assert shlex.split(told[-1]) == [
        "matslice", "slice", f"checkpoint={weights}", "slice=full", "slice.name=w${slice.ffn_widths.0}",
        "slice.ffn_widths=[99]", "output=./a b/${slice.name}",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["slice=e2b", "json=true"], ["slice=e2b,full", "json=true", "--multirun"]])
def test_who_reads_no_further_gets_no_complaint(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "recipes.cli", "plan", "model=e4b", *words]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, check=False, cwd=tmp_path, env=os.environ | paths
    )
    os.close(writing)
    assert (done.stderr, done.returncode) == (b"", 141)


def test_values_may_stand_on_both_sides_of_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slice", "slice=e2b", "--cfg", "job", "slice.name=mine"]) == 0
    assert OmegaConf.select(OmegaConf.create(capsys.readouterr().out), "slice.name") == "mine"


def test_a_directory_of_ones_own_adds_to_the_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slice").mkdir()
    (tmp_path / "slice" / "mine.yaml").write_text("name: mine\nffn_widths: [16]\n", encoding="utf-8")
    assert main(["slice", "--config-dir", str(tmp_path), "slice=mine", "--cfg", "job"]) == 0
    assert main(["slice", "--config-dir", str(tmp_path), "slice=mime", "--cfg", "job"]) == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name: mine\nffn_width: [16]\n", "slice/mine.yaml: slice.ffn_width: there is no such key; 'slice' has name"),
        ("name: mine\nffn_widths: wide\n", "slice/mine.yaml: slice.ffn_widths is a single value; it must be a list"),
        ("name: mine\nffn_widths: [16\n", "mine.yaml"),
        ("name: ${nmae}\n", "slice.name: Interpolation key 'nmae' not found"),
    ],
)
def test_a_wrong_file_is_named(content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slice").mkdir()
    (tmp_path / "slice" / "mine.yaml").write_text(content, encoding="utf-8")
    assert main(["slice", "--config-dir", str(tmp_path), "slice=mine", "checkpoint=x", "output=y"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert told in shown


def test_a_sweep_leaves_the_command_line_as_it_was(weights: Path) -> None:
    before = list(sys.argv)
    main(["slice", f"checkpoint={weights}", "nonsense=1"])
    assert sys.argv == before


def test_hydra_full_error_shows_the_exception(train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError, match="max_steps"):
        train("trainer.max_steps=-1")


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "locked/run"), "'locked/run': Permission denied"),
        (SafetensorError("Error while serializing: no space"), "a weight file could not be read or written"),
    ],
    ids=str,
)
def test_what_the_disk_refuses_is_said_in_a_line(
    failure: Exception, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise failure

    words = ["checkpoint=x", "output=y", "slice=full"]
    assert start("slice", SliceRecipe, fail, words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert told in shown
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(failure)):
        start("slice", SliceRecipe, fail, words)
