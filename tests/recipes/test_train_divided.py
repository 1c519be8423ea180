# SPDX-License-Identifier: Apache-2.0
"""``matslice train`` with the model divided up between two processes: packed rows, a mapped table, a loss of NaN."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoint.saving import save
from recipes.cli import main
from tests.recipes.conftest import WORDS
from tests.recipes.process_commands import STATUS_FILE
from tests.tiny import tiny_model
from tests.trainer.parts import tiny_tokenizer
from tests.trainer.test_processes import ROOT, free_port
from trainer.divergence import DIVERGENCE_FILE
from trainer.retention import steps_of
from trainer.sinks import METRICS_FILE, read_records

CONFIG_FILES = ROOT / "conf" / "accelerate"
PACKED = ["adapter=none", "data.max_length_tokens=64", "trainer.eval_every=1"]
MAPPED = ["adapter=attention", "trainer.per_layer_table=mmap", "data.max_length_tokens=64"]
# Rows are as they are, so that a micro-batch without the spoilt one is known.
SPOILT = ["adapter=attention", "data.packing=false"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def spoilt_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which the per-layer embeddings of one letter are not numbers."""
    directory = tmp_path_factory.mktemp("weights") / "spoilt"
    model, tokenizer = tiny_model(), tiny_tokenizer()
    (letter,) = tokenizer.encode("z")
    with torch.no_grad():
        model.get_parameter("model.language_model.embed_tokens_per_layer.weight")[letter] = float("nan")
    save(model, directory, extras=tokenizer.write)
    return directory


@pytest.fixture(scope="module")
def base(weights: Path, spoilt_weights: Path, chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, all in one launch, and the same of one process with both's micro-batches."""
    base = tmp_path_factory.mktemp("divided")
    common = [f"data.train=[{chat}]", "trainer=cpu", "trainer.max_steps=3",
              "trainer.batch_size=1", "trainer.log_every=1", "schedule.warmup_steps=0"]  # fmt: skip
    whole = [f"checkpoint={weights}", f"data.validation=[{chat}]"]
    kinds = {"packed": [*whole, *PACKED], "mapped": [*whole, *MAPPED],
             "spoilt": [f"checkpoint={spoilt_weights}", *SPOILT]}  # fmt: skip
    for name in ("packed", "mapped"):
        words = [*common, *kinds[name], "trainer.gradient_accumulation=2", f"trainer.output={base / name}_one"]
        assert main(["train", *words]) == 0
    commands = [
        ["train", *common, *words, "trainer.gradient_accumulation=1", f"trainer.output={base / name}"]
        for name, words in kinds.items()
    ]
    launched = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG_FILES / "fsdp2.yaml"),
        "--num_processes", "2", "--main_process_port", str(free_port()), "-m", "tests.recipes.process_commands",
        str(base), json.dumps(commands),
    ]  # fmt: skip
    subprocess.run(launched, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=840)
    return base


def test_each_process_ends_as_its_run_does(base: Path) -> None:
    assert [json.loads((base / STATUS_FILE.format(process)).read_text()) for process in (0, 1)] == [[0, 0, 2]] * 2


@pytest.mark.parametrize("name", ["packed", "mapped"])
def test_divided_runs_are_those_of_one_process(base: Path, name: str) -> None:
    begun, *alone = read_records(base / f"{name}_one" / METRICS_FILE)
    assert begun["train_packs"] >= 3  # which are not all in one step
    _, *together = read_records(base / name / METRICS_FILE)
    kinds = [record["kind"] for record in together]
    assert kinds == [record["kind"] for record in alone]
    assert kinds.count("train") == 3
    assert "validation" in kinds
    # Sums in another order, and up to three steps of Adam.
    assert [record["loss"] for record in together] == pytest.approx([record["loss"] for record in alone], abs=1e-4)
    norms, their_norms = ([r["gradient_norm"] for r in run if r["kind"] == "train"] for run in (together, alone))
    assert norms[0] == pytest.approx(their_norms[0], rel=1e-5)
    assert norms == pytest.approx(their_norms, rel=5e-4)


def test_a_loss_that_is_not_a_number_ends_all_processes_before_its_step(base: Path) -> None:
    told = json.loads((base / "spoilt" / DIVERGENCE_FILE).read_text())
    assert told["rows"]
    assert {int(row.rpartition(":")[2]) % len(WORDS) for row in told["rows"]} == {0}  # "z" is the last of them
    steps = [record["step"] for record in read_records(base / "spoilt" / METRICS_FILE) if record["kind"] == "train"]
    assert steps == list(range(1, told["step"]))
    assert steps_of(base / "spoilt") == []
