# SPDX-License-Identifier: Apache-2.0
"""Jobs that submitit runs in processes of their own: what goes there and what comes back."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from recipes.cli import main
from tests.trainer.parts import losses

ROOT = Path(__file__).parents[2]
SUBMIT = ["--multirun", "hydra/launcher=submitit_local"]
WITHOUT_EXTRA = """
import sys
import hydra_plugins

hydra_plugins.__path__ = []
from recipes.cli import main

sys.exit(main(sys.argv[1:]))
"""
# Slurm's commands as far as submitit uses them for an array of jobs: they run here, one after the other.
SBATCH = """#!{python}
import os, re, subprocess, sys

text = open(sys.argv[1]).read()
last = re.search(r"--array=0-([0-9]+)", text)
print("Submitted batch job 42", flush=True)
if os.fork():
    os._exit(0)
for told in (1, 2):  # submitit waits for the end of what is said
    os.dup2(os.open(os.devnull, os.O_WRONLY), told)
for number in range(int(last[1]) + 1 if last else 1):
    array = {{"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": str(number)}} if last else {{}}
    environment = {{"SLURM_JOB_ID": str(42 + number), "SLURM_NTASKS": "1", "SLURM_PROCID": "0", **array}}
    subprocess.run(["bash", sys.argv[1]], env=os.environ | environment)
"""
SRUN = """#!{python}
import os, sys

words = sys.argv[1:]
while words[0].startswith("-"):
    if words[0] in ("--output", "--error"):
        array, number = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
        place = words[1].replace("%A", array).replace("%a", number).replace("%t", "0")
        log = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1 if words[0] == "--output" else 2)
    words = words[2:] if words[0] in ("--output", "--error") else words[1:]
os.execvp(words[0], words)
"""
SACCT = "#!/bin/sh\n"  # of no job is anything known; results tell


@pytest.fixture
def words(weights: Path, chat: Path, tmp_path: Path) -> list[str]:
    """``matslice train`` for two steps on the tiny checkpoint, but for where."""
    return ["train", f"checkpoint={weights}", f"data.train=[{chat}]", "trainer=cpu", "trainer.max_steps=2",
            "trainer.gradient_accumulation=1", "trainer.log_every=1", "schedule.warmup_steps=0",
            f"hydra.sweep.dir={tmp_path / 'a sweep'}"]  # fmt: skip


def matslice(words: list[str], *, path: Path | None = None) -> subprocess.Popen[str]:
    """The command in a process of its own, as everything that submits."""
    places = [*([str(path)] if path else []), os.environ["PATH"]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": os.pathsep.join(places)}
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.cli", *words],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def words_of(process: subprocess.Popen[str]) -> str:
    """What a command that comes to its end has to say."""
    try:
        return process.communicate(timeout=500)[1]
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("hydra/launcher=submitit_slurm", "starts the jobs of --multirun only"),
        ("hydra/launcher=joblib", "starts the jobs of --multirun only"),
        ("hydra/sweeper=optuna", "chooses the jobs of --multirun only"),
    ],
)
def test_a_launcher_that_would_not_be_used_is_refused(
    word: str, told: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, word, "trainer.output=x"]) == 2
    assert f"{word} {told}" in capsys.readouterr().err


def test_several_processes_do_not_submit_the_same_jobs_each(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main([*words, *SUBMIT, "trainer.output=x"]) == 2
    assert "give each job hydra.launcher.tasks_per_node" in capsys.readouterr().err
    assert main([*words, "--multirun", "hydra/launcher=joblib"]) == 2
    assert "each of which would start all jobs" in capsys.readouterr().err
    assert main([*words, "--multirun", "hydra/sweeper=optuna"]) == 2
    assert "each of which would choose jobs of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("hydra/launcher=submitit_local", "submits jobs is not installed; pip install 'matslice[slurm]'"),
        pytest.param(
            "hydra/launcher=joblib", "runs jobs side by side is not installed; pip install 'matslice[joblib]'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "hydra/sweeper=optuna", "searches for values is not installed; pip install 'matslice[optuna]'",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_launcher_without_its_extra_is_refused(word: str, told: str, words: list[str]) -> None:
    command = [sys.executable, "-c", WITHOUT_EXTRA, *words, "--multirun", word]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {word}: the extra that {told}")


def test_a_cluster_is_asked_for_jobs_only_where_there_is_one(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*words, "--multirun", "hydra/launcher=submitit_slurm", "trainer.output=x"]) == 2
    assert "there is no srun here" in capsys.readouterr().err


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A directory with Slurm's commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(0o755)
    return programs


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", ["submitit_local", "submitit_slurm"])
def test_jobs_run_elsewhere_and_their_errors_come_back(
    launcher: str, words: list[str], tmp_path: Path, cluster: Path
) -> None:
    output = tmp_path / "run, ${trainer.batch_size} (=)"  # nothing in it is Hydra's, but for the reference
    asked = [*words, "--multirun", f"hydra/launcher={launcher}", f"trainer.output={output}", "trainer.batch_size=2,0,1"]
    process = matslice(asked, path=cluster)
    told = words_of(process)
    assert process.returncode == 2, told
    counted, error, command = told.splitlines()[-3:]
    assert counted == f"3 jobs: 2 done, 1 failed; {tmp_path / 'a sweep' / 'jobs.jsonl'}"
    assert error.startswith("job 1 failed: trainer.batch_size is 0; it must be at least 1 (its log: ")
    assert "must be at least 1" in Path(error.rpartition("(its log: ")[2].removesuffix(")")).read_text()
    repeated = shlex.split(command)
    assert {f"trainer.output={output}", "trainer.batch_size=0", f"hydra/launcher={launcher}"} < {*repeated}
    assert len(losses(tmp_path / "run, 2 (=)")) == len(losses(tmp_path / "run, 1 (=)")) == 2
    assert not (tmp_path / "run, 0 (=)").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_of_a_job_train_together(words: list[str], tmp_path: Path) -> None:
    two = [*words, *SUBMIT, "hydra.launcher.tasks_per_node=2", f"trainer.output={tmp_path / 'two'}"]
    process = matslice([*two, "trainer.batch_size=1"])
    told = words_of(process)
    assert process.returncode == 0, told
    one = [word for word in words if not word.startswith("hydra.")]
    assert main([*one, "trainer.batch_size=2", f"trainer.output={tmp_path / 'one'}"]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)  # sums in another order


@pytest.fixture
def long_job(words: list[str], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """What submitted a job that goes on for long, and the job's process, which has taken a step."""
    endless = ["trainer.max_steps=100000", "trainer.batch_size=2", f"trainer.output={tmp_path / 'run'}"]
    process = matslice([*words, *SUBMIT, *endless])
    log = tmp_path / "run" / "metrics.jsonl"
    try:
        until = time.monotonic() + 500
        while not (log.exists() and '"kind": "train"' in log.read_text()):
            assert time.monotonic() < until, "no step was taken"
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.2)
        (job,) = [child for child in psutil.Process(process.pid).children(recursive=True)
                  if "submitit.core._submit" in child.cmdline()]  # fmt: skip
        yield process, job
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2], ids=["preempted", "out of time"])
def test_a_job_that_is_to_make_room_saves(
    long_job: tuple[subprocess.Popen[str], psutil.Process], number: int, words: list[str], tmp_path: Path
) -> None:
    process, job = long_job
    job.send_signal(number)
    told = words_of(process)
    assert process.returncode == 143, told
    assert "it ended with exit status 143 (its log: " in told
    (step,) = [int(path.name.removeprefix("step_")) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert step >= 1
    assert len(losses(tmp_path / "run")) == step
    assert main(["train", f"resume={tmp_path / 'run'}", "trainer.max_minutes=0.001"]) == 0  # which are over
