# SPDX-License-Identifier: Apache-2.0
"""``matslice train`` with DeepSpeed's config file: small buckets, sent while others fill; and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from recipes.cli import main
from tests.recipes.process_commands import STATUS_FILE
from tests.trainer.test_processes import ROOT, free_port
from tests.trainer.test_processes_sharded import CONFIG_FILES
from tests.trainer.test_processes_zero import long
from trainer.retention import checkpoint_at
from trainer.runtime import JOINING
from trainer.sinks import METRICS_FILE, read_records
from trainer.trained import OPTIMIZER_FILE, read_tensors
from trainer.zero_config import USING_ZERO, ZERO_FILE

PLAIN = ["adapter=none", "data.max_length_tokens=64", "trainer.eval_every=1"]
# Frozen weights of bfloat16, on which DeepSpeed is not to lay its hands.
FROZEN = ["adapter=attention", "trainer.per_layer_table=mmap", "trainer.precision=bf16", "data.max_length_tokens=64"]
COMPILED = ["adapter=none", "data.max_length_tokens=64", "trainer.compile=true"]
TRAINED = {"plain": PLAIN, "frozen": FROZEN, "compiled": COMPILED}
REFUSED = {
    "skipping": [
        "+slice@sizes.short=full",
        "sizes.short.name=short",
        "sizes.short.skip_layers=[3,4,5]",
        "elastic=sandwich",
    ],
    "adafactor": ["optim=adafactor"],
    "unclipped": ["trainer.max_grad_norm=null"],  # DeepSpeed's file says otherwise
}


@pytest.fixture(scope="module")
def base(weights: Path, chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, all in one launch, and the same of one process with both's micro-batches."""
    base = tmp_path_factory.mktemp("zero")
    file = base / "zero.json"
    file.write_text(json.dumps({
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 2000,
                              "allgather_bucket_size": 3e3},
        "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 1.0,
    }))  # fmt: skip
    launcher = yaml.safe_load((CONFIG_FILES / "deepspeed.yaml").read_text())
    del launcher["mixed_precision"]  # as Accelerate would have it beside a file of DeepSpeed's
    launcher["deepspeed_config"] = {"deepspeed_config_file": str(file), "zero3_init_flag": False}
    (base / "launcher.yaml").write_text(yaml.safe_dump(launcher))
    common = [f"data.train=[{chat}]", "trainer=cpu", "trainer.max_steps=3", f"checkpoint={weights}",
              f"data.validation=[{chat}]", "trainer.batch_size=1", "trainer.log_every=1",
              "schedule.warmup_steps=0",
              "trainer.save_every=1", "trainer.keep_checkpoints=9"]  # fmt: skip
    for name, words in TRAINED.items():
        own = ["trainer.gradient_accumulation=2", f"trainer.output={base / name}_one"]
        assert main(["train", *common, *words, *own]) == 0
    commands = [["train", *common, *words, "trainer.gradient_accumulation=1", f"trainer.output={base / name}"]
                for name, words in {**TRAINED, **REFUSED}.items()]  # fmt: skip
    launched = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(base / "launcher.yaml"),
        "--num_processes", "2", "--main_process_port", str(free_port()), "-m", "tests.recipes.process_commands_zero",
        str(base), json.dumps(commands),
    ]  # fmt: skip
    with (base / "told").open("w") as told:
        subprocess.run(launched, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=840,
                       stderr=told)  # fmt: skip
    return base


@long
def test_each_process_ends_as_its_run_does(base: Path) -> None:
    statuses = [0] * len(TRAINED) + [2] * len(REFUSED)
    assert [json.loads((base / STATUS_FILE.format(process)).read_text()) for process in (0, 1)] == [statuses] * 2


@long
@pytest.mark.parametrize("name", list(TRAINED))
def test_runs_of_divided_states_are_those_of_one_process(base: Path, name: str) -> None:
    _, *alone = read_records(base / f"{name}_one" / METRICS_FILE)
    _, *together = read_records(base / name / METRICS_FILE)
    kinds = [record["kind"] for record in together]
    assert kinds == [record["kind"] for record in alone]
    assert kinds.count("train") == 3
    # Sums in another order, and up to three steps of Adam; bfloat16 rounds to three digits what comes of it.
    assert [record["loss"] for record in together] == pytest.approx(
        [record["loss"] for record in alone], abs=2e-3 if name == "frozen" else 1e-4
    )
    norms, their_norms = ([r["gradient_norm"] for r in run if r["kind"] == "train"] for run in (together, alone))
    assert norms[0] == pytest.approx(their_norms[0], rel=1e-3 if name == "frozen" else 1e-5)
    assert norms == pytest.approx(their_norms, rel=1e-2 if name == "frozen" else 5e-4)


@long
@pytest.mark.parametrize("name", ["plain", "compiled"])
def test_what_they_remember_of_each_parameter_is_what_one_process_does(base: Path, name: str) -> None:
    alone, together = (
        read_tensors(checkpoint_at(base / run, 1) / OPTIMIZER_FILE) for run in (f"{name}_one", name)
    )  # fmt: skip
    assert together["param_groups"] == alone["param_groups"]
    assert together["state"].keys() == alone["state"].keys()
    for number, remembered in alone["state"].items():
        assert together["state"][number].keys() == remembered.keys()
        for key, value in remembered.items():
            torch.testing.assert_close(together["state"][number][key], value, rtol=1e-3, atol=1e-6)


@long
def test_what_is_refused_is_told_by_name_and_begins_no_run(base: Path) -> None:
    told = (base / "told").read_text()
    for words in ("layers that a sub-model of sizes skips", "optim.name is adafactor",
                  "gradient_clipping=1.0, but trainer.max_grad_norm is null"):  # fmt: skip
        assert words in told
    assert not any((base / name / METRICS_FILE).exists() for name in REFUSED)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.max_grad_norm=null"], "gradient_clipping=1.0, but trainer.max_grad_norm is null"),
        (REFUSED["skipping"], "layers that a sub-model of sizes skips"),
    ],
)
def test_what_contradicts_the_run_is_told_before_data_is_read(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], told: str,
) -> None:  # fmt: skip
    def read_data(*_: object, **__: object) -> None:
        raise AssertionError("data is read")

    monkeypatch.setattr("recipes.train_prepare.read_data", read_data)
    monkeypatch.setattr("trainer.zero_config.is_installed", lambda: True)
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}))
    for name, value in zip(JOINING, ("0", "0", "1", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(ZERO_FILE, str(tmp_path / "zero.json"))
    monkeypatch.setenv(USING_ZERO, "true")
    assert train("adapter=none", *words) == 2
    assert told in capsys.readouterr().err
    with pytest.raises(AssertionError, match="data is read"):
        train("adapter=none")
