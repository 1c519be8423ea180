# SPDX-License-Identifier: Apache-2.0
"""The import rules of pyproject.toml hold, and breaking one is noticed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("model", "trainer", "recipes")


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    environment = {**os.environ, "PYTHONPATH": str(directory), "COLUMNS": "200"}
    return subprocess.run(
        [*command, "--config", "pyproject.toml", "--no-cache"],
        cwd=directory, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_import_contract_is_kept() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("model/planted.py", "import trainer", "models know neither"),
        ("trainer/planted.py", "import recipes", "models know neither"),
        ("trainer/planted.py", "import omegaconf", "hydra and omegaconf stay in recipes"),
        ("recipes/planted.py", "import accelerate", "accelerate stays in trainer"),
        ("trainer/planted.py", "import peft", "peft stays in model.adapter"),
        ("model/planted.py", "import transformers", "transformers in the tests"),
        ("model/planted.py", "import timm", "transformers in the tests"),
        ("model/vision/planted.py", "import model.audio.tower", "strangers to each other"),
        ("model/checkpoint/format.py", "import torch", "cut, counted and planned without torch"),
        ("model/slicing/lineage.py", "import safetensors", "cut, counted and planned without torch"),
        ("model/slicing/lineage.py", "import model.checkpoint.tensors", "cut, counted and planned without torch"),
        ("model/slicing/count.py", "import model.vision.stages", "sizes are counted from names and shapes"),
    ],
)
def test_a_planted_violation_is_caught(copied_tree: Path, module: str, line: str, contract: str) -> None:
    (copied_tree / module).write_text(f"{line}\n", encoding="utf-8")
    result = lint(copied_tree)
    assert result.returncode == 1
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text]
    assert len(broken) == 1, result.stdout
    assert contract in broken[0]
    planted = module.removesuffix(".py").replace("/", ".")
    assert f"{planted} -> {line.split()[-1]} (l.1)" in result.stdout
