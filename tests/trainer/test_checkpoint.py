# SPDX-License-Identifier: Apache-2.0
"""A run killed at any moment goes on as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.adapter.lora import AdapterConfig
from model.checkpoint.load import load
from model.errors import CheckpointError, ConfigError
from tests.daily import daily
from tests.trainer.parts import elastic, losses, tiny_trainer, trainer_config
from trainer.elastic import ElasticPolicy
from trainer.identity import refuse_another, refuse_other_rows
from trainer.loop import Trainer
from trainer.manifest import write_manifest
from trainer.state import TrainState
from trainer.weights import Weights

ROOT = Path(__file__).parents[2]


def trainer(output: Path, *, whole: bool = False, **changes: Any) -> Trainer:
    """Four steps on a sandwich, an adapter with dropout unless ``whole``; the same as tests/trainer/program.py."""
    adapter = None if whole else AdapterConfig(rank=4, alpha=8, dropout=0.1)
    config = trainer_config(output, **{"max_steps": 4, "save_every": 2} | changes)
    return tiny_trainer(config, adapter=adapter, elastic_config=elastic(ElasticPolicy.sandwich), num_validation=5)


def assert_same_runs(one: Path, other: Path) -> None:
    """Losses, weights and optimizer are equal to the last bit."""
    assert losses(one) == losses(other)
    last = sorted((one / "checkpoints").iterdir())[-1].relative_to(one)
    weights = sorted((one / last / "weights").glob("*.safetensors"))
    assert weights
    for path in weights:
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()
    optimizers = [torch.load(run / last / "optimizer.pt", weights_only=True)["state"] for run in (one, other)]
    for index, moments in optimizers[0].items():
        assert all(torch.equal(value, optimizers[1][index][name]) for name, value in moments.items())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    output = tmp_path_factory.mktemp("straight") / "run"
    trainer(output).fit()
    return output


@pytest.mark.parametrize(
    ("kill_at", "kill_in_save", "left"),
    [
        pytest.param(3, False, ["step_000002"], marks=pytest.mark.slow),  # test_resume_everywhere.py has many of these
        (4, True, ["step_000002", "unfinished_step_000004"]),
    ],
    ids=["between saves", "in a save"],
)
def test_a_run_killed_outright_resumes_bit_for_bit(
    tmp_path: Path, straight: Path, kill_at: int, *, kill_in_save: bool, left: list[str]
) -> None:
    wishes = {"output": str(tmp_path / "run"), "policy": "sandwich", "adapter": True, "max_steps": 4, "save_every": 2}
    killed = subprocess.run(
        [sys.executable, "-m", "tests.trainer.program",
         json.dumps(wishes | {"kill_at": kill_at, "kill_in_save": kill_in_save})],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, timeout=200,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == left
    trainer(tmp_path / "run", resume=True).fit()
    assert_same_runs(straight, tmp_path / "run")


def stop_after(step: int, output: Path, **changes: Any) -> None:
    """Run until after the checkpoint of ``step``, then fail."""
    stopped = trainer(output, **changes)
    save = stopped.weights.save

    def save_or_stop(directory: Path) -> None:
        if f"{step:06d}" not in str(directory) and any((output / "checkpoints").glob(f"step_{step:06d}")):
            raise KeyboardInterrupt
        save(directory)

    stopped.weights = Weights(save=save_or_stop, load=stopped.weights.load)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()


def test_a_run_resumed_twice_repeats_the_losses(tmp_path: Path, straight: Path) -> None:
    stop_after(1, tmp_path, save_every=1)
    stop_after(2, tmp_path, save_every=1, resume=True)
    trainer(tmp_path, resume=True).fit()
    assert_same_runs(straight, tmp_path)


def test_a_run_of_the_whole_model_resumes_bit_for_bit(tmp_path: Path) -> None:
    trainer(tmp_path / "straight", whole=True).fit()
    stop_after(2, tmp_path / "resumed", whole=True)
    trainer(tmp_path / "resumed", whole=True, resume=True).fit()
    assert_same_runs(tmp_path / "straight", tmp_path / "resumed")


def test_a_finished_run_resumed_does_nothing(tmp_path: Path, straight: Path) -> None:
    shutil.copytree(straight, tmp_path / "run")
    state = trainer(tmp_path / "run", resume=True).fit()
    assert state.step == 4
    assert_same_runs(straight, tmp_path / "run")


def test_resuming_before_the_first_checkpoint_begins_anew(tmp_path: Path, straight: Path) -> None:
    stopped = trainer(tmp_path)
    stopped.sinks[0].write({"kind": "train", "step": 1, "loss": 0.0})
    stopped.run.close()
    trainer(tmp_path, resume=True).fit()
    assert_same_runs(straight, tmp_path)


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer(tmp_path, save_every=1, keep_checkpoints=2).fit()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000003", "step_000004"]


def test_the_weights_of_a_checkpoint_are_the_model(tmp_path: Path) -> None:
    run = trainer(tmp_path, whole=True, max_steps=2)
    run.fit()
    loaded = load(tmp_path / "checkpoints" / "step_000002" / "weights", dtype=torch.float32)
    own = dict(run.model.named_parameters())
    assert all(torch.equal(parameter, own[name]) for name, parameter in loaded.named_parameters())


def test_a_run_is_not_started_over_by_accident(tmp_path: Path, straight: Path) -> None:
    with pytest.raises(ConfigError, match=r"already holds a run; go on with it by 'matslice train resume="):
        trainer(straight)


def test_resuming_with_other_values_names_every_key(straight: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"another run;.*\n  trainer\.max_grad_norm: was 1.0, now 3.0\n  trainer\.seed: was 3, now 4$",
    ):
        trainer(straight, resume=True, max_grad_norm=3.0, seed=4)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], None]] = {"flipped": flip_a_bit, "cut": cut_short, "missing": Path.unlink}
TOLD = {"flipped": "has other bytes than were written", "cut": r"has \d+ bytes, not \d+", "missing": "is missing"}
FILES = ["weights/adapter_model.safetensors", "optimizer.pt", "state.json", "random_0.pt"]
DAILY = list(zip(("flipped", "flipped", "cut", "missing"), FILES, strict=True))


@pytest.mark.parametrize(("damage", "file"), daily([(damage, file) for file in FILES for damage in DAMAGES], *DAILY))
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(
    tmp_path: Path, straight: Path, capsys: pytest.CaptureFixture[str], damage: str, file: str
) -> None:
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    DAMAGES[damage](tmp_path / "run" / "checkpoints" / "step_000004" / file)
    trainer(tmp_path / "run", resume=True).fit()
    told = capsys.readouterr().err
    assert re.search(rf"warning: .*step_000004 is damaged \({file} {TOLD[damage]}\); going on from step 2", told)
    assert_same_runs(straight, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["damaged_step_000004", "step_000002", "step_000004"]


@pytest.mark.parametrize(
    "content",
    daily(["", "[]", "{}", '{"files": {}}', '{"files": {"optimizer.pt": {}}}', "\0" * 99], "", '{"files": {}}'),
)
def test_a_manifest_that_says_nothing_is_a_damage(tmp_path: Path, straight: Path, content: str) -> None:
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "checkpoints" / "step_000004" / "manifest.json").write_text(content)
    again = trainer(tmp_path / "run", resume=True)
    assert again.run.resumed_step == 2
    again.run.close()


def test_a_run_without_a_whole_checkpoint_is_refused_by_the_names_of_all(tmp_path: Path, straight: Path) -> None:
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    before = [tmp_path / "run" / "checkpoints" / name for name in ("step_000004", "step_000002")]
    flip_a_bit(before[0] / "optimizer.pt")
    (before[1] / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint is what was written; .*\n  .*4: optimizer\.pt has other.*\n  .*2: manifest\.json is m",
    ):
        trainer(tmp_path / "run", resume=True)
    assert all(path.is_dir() for path in before)  # nothing is renamed where nothing can be gone on with


def test_a_run_that_failed_before_its_first_checkpoint_does_not_block_its_directory(
    tmp_path: Path, straight: Path
) -> None:
    failed = trainer(tmp_path, seed=4)
    failed.sinks[0].write({"kind": "start", "step": 0})
    failed.sinks[0].write({"kind": "train", "step": 1, "loss": 0.0})
    failed.run.close()
    trainer(tmp_path).fit()
    assert (tmp_path / "run.json").read_bytes() == (straight / "run.json").read_bytes()
    assert_same_runs(straight, tmp_path)


def test_a_directory_belongs_to_the_run_that_is_going_on(tmp_path: Path) -> None:
    going_on = trainer(tmp_path)
    with pytest.raises(ConfigError, match="a run is going on in"):
        trainer(tmp_path)
    going_on.run.close()


def test_resuming_with_other_rows_per_step_names_the_accumulation_that_keeps_them(
    straight: Path,
) -> None:
    with pytest.raises(CheckpointError, match=r"takes 2 rows, now it would take 6 .*; set trainer\.gradient_acc.*=1$"):
        trainer(straight, resume=True, gradient_accumulation=3)
    with pytest.raises(CheckpointError, match=r"no trainer\.gradient_acc.* gives 2 with 4 .*\(there were 1\)"):
        refuse_other_rows(TrainState(step=4, position=8), trainer_config(straight), 4)
    # Four processes of one micro-batch each go on with what one process did with four.
    refuse_other_rows(TrainState(step=4, position=4 * 8), trainer_config(straight), 4)


def test_a_checkpoint_of_other_parts_says_what_to_delete(tmp_path: Path, straight: Path) -> None:
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    newest = tmp_path / "run" / "checkpoints" / "step_000004"
    torch.save({"state": {}, "param_groups": []}, newest / "optimizer.pt")
    write_manifest(newest)  # whole, but of something else
    with pytest.raises(CheckpointError, match=r"step_000004: the optimizer's state is of 0 parameters, the run trains"):
        trainer(tmp_path / "run", resume=True).fit()


def test_the_newest_weights_are_linked_after_every_save(tmp_path: Path) -> None:
    stop_after(2, tmp_path)
    assert (tmp_path / "weights").resolve() == tmp_path / "checkpoints" / "step_000002" / "weights"
    trainer(tmp_path, resume=True).fit()
    assert (tmp_path / "weights").resolve() == tmp_path / "checkpoints" / "step_000004" / "weights"


def test_another_run_is_told_by_the_names_of_its_files(tmp_path: Path) -> None:
    stored, now = (
        {"run": {"data": {"train": digest}}, "told": {"data.train": name}}
        for digest, name in (("1f", "a.jsonl"), ("2f", "b.jsonl"))
    )
    with pytest.raises(CheckpointError, match=r"data\.train: was '1f' \(a\.jsonl\), now '2f' \(b\.jsonl\)"):
        refuse_another(stored=stored, now=now, path=tmp_path)
    refuse_another(stored=stored, now=now | {"run": stored["run"]}, path=tmp_path)  # another name, the same data
