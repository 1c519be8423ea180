# SPDX-License-Identifier: Apache-2.0
"""Several jobs of one command line: none is given up for another, all are accounted for, each can be repeated."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from recipes.cli import RECIPES, schema_of
from recipes.job_records import replace_lines
from recipes.plan import PlanRecipe
from recipes.program import start
from recipes.quoting import places
from tests.recipes.multirun_program import BROKEN, ENDLESS, KILLED, REFUSED, SLOW, WELL, run

ROOT = Path(__file__).parents[2]
LAUNCHERS = ["basic", "joblib", "submitit_local"]


def jobs_of(directory: Path) -> list[dict[str, Any]]:
    """What ``jobs.jsonl`` says."""
    return [json.loads(line) for line in (directory / "out/multirun/jobs.jsonl").read_text().splitlines()]


def words_for(launcher: str) -> list[str]:
    """What asks for jobs by a launcher, where two run at once if they do."""
    return ["--multirun", f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else [])]


def started(directory: Path, *words: str) -> subprocess.Popen[str]:
    """The program of several jobs, in a process of its own, in ``directory``."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.recipes.multirun_program", *words],
        cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("launcher", ["basic", "joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_jobs_that_go_wrong_are_told_and_the_others_run(launcher: str, tmp_path: Path) -> None:
    asked = [f"context={REFUSED},{BROKEN},{WELL}", "max_effective=2.5", "save='a b'", *words_for(launcher)]
    process = started(tmp_path, *asked)
    told = process.communicate(timeout=250)[1]
    assert process.returncode == 2, told
    assert "this is broken" in told
    lines = told.splitlines()[-5:]
    assert lines[0] == "3 jobs: 1 done, 2 failed; out/multirun/jobs.jsonl"
    assert lines[1].startswith("job 0 failed: this is not to be had")
    assert lines[3].startswith("job 1 failed: RuntimeError: this is broken")
    found = jobs_of(tmp_path)
    assert [(job["job"], job["status"], job["exit_status"]) for job in found] == [
        (0, "failed", 2), (1, "failed", 1), (2, "done", 0)
    ]  # fmt: skip
    assert len({job["multirun"] for job in found}) == 1
    assert found[2]["value"] == 2.5
    assert all(job["seconds"] >= 0 for job in found)
    assert [lines[2].strip(), lines[4].strip()] == [found[0]["command"], found[1]["command"]]
    assert shlex.split(found[1]["command"])[:5] == [
        "matslice", "plan", f"context={BROKEN}", "max_effective=2.5", "save='a b'"
    ]  # fmt: skip
    assert not (tmp_path / "out/multirun/.jobs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "beside"), [("joblib", "lost"), ("submitit_local", "done")])
def test_a_job_that_is_killed_takes_none_along_that_did_not_run_beside_it(
    launcher: str, beside: str, tmp_path: Path
) -> None:
    process = started(tmp_path, f"context={KILLED},{SLOW},{WELL},{REFUSED}", *words_for(launcher))
    told = process.communicate(timeout=280)[1]
    assert process.returncode == 1, told
    assert [job["status"] for job in jobs_of(tmp_path)] == ["lost", beside, "done", "failed"]
    assert "job 0 ended without a word: " in told


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_interrupt_ends_all_jobs(launcher: str, number: signal.Signals, tmp_path: Path) -> None:
    process = started(tmp_path, f"context={ENDLESS},{WELL}", *words_for(launcher))
    until = time.monotonic() + 200
    while not (begun := tmp_path / f"pid_{ENDLESS}").exists() or not begun.read_text():
        assert time.monotonic() < until, "no job began"
        time.sleep(0.1)
    time.sleep(1)
    job = psutil.Process(int(begun.read_text()))
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if number == signal.SIGINT else 143), told
    assert not psutil.wait_procs([job], timeout=20)[1]
    found = jobs_of(tmp_path)
    assert found[0]["status"] == "interrupted"
    assert found[1]["status"] in (["not_begun"] if launcher == "basic" else ["done", "interrupted", "not_begun"])
    assert "1 interrupted" in told


@pytest.mark.parametrize("name", RECIPES)
def test_a_job_that_fails_is_told_by_every_recipe(name: str, here: Path) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no")

    schema = schema_of(name)
    key = min((key for key, is_list in places(schema).items() if not is_list), key=lambda key: key.count("."))
    assert start(name, schema, fail, ["--multirun", f"{key}=a,b"]) in (1, 2)  # 2: more must be given
    found = jobs_of(here)
    assert [job["status"] for job in found] == ["failed", "failed"]
    assert [f"{key}={value}" in shlex.split(job["command"]) for job, value in zip(found, "ab", strict=True)] == [
        True
    ] * 2


def test_jobs_of_an_earlier_multirun_stay_in_the_file(here: Path) -> None:
    for _ in range(2):
        assert start("plan", PlanRecipe, run, ["--multirun", f"context={WELL},{REFUSED}"]) == 2
    assert [job["status"] for job in jobs_of(here)] == ["done", "failed"] * 2


def leave(recipe: PlanRecipe) -> None:
    """End as the number says: with words, with a status of one's own, well, or as after a signal."""
    words = {1: "told in words", 2: 3, 3: 0, 4: None, 6: 143}
    if recipe.context in words:
        sys.exit(words[recipe.context])


def test_a_job_that_leaves_with_words_has_failed_and_ends_no_other(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("plan", PlanRecipe, leave, ["--multirun", "context=1,2,3,4,5,6,7"]) == 143
    found = [(job["status"], job["exit_status"], job["message"]) for job in jobs_of(here)]
    assert found == [
        ("failed", 1, "told in words"), ("failed", 3, "it ended with exit status 3"), ("done", 0, ""), ("done", 0, ""),
        ("done", 0, ""), ("interrupted", 143, "it ended with exit status 143"), ("not_begun", None, ""),
    ]  # fmt: skip
    assert "error: job 0 (context=1): told in words" in capsys.readouterr().err


@pytest.mark.parametrize(("context", "status"), [(1, 1), (2, 3), (3, 0), (4, 0), (6, 143)])
def test_what_a_program_alone_is_left_with_is_its_status(
    here: Path, context: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("plan", PlanRecipe, leave, [f"context={context}"]) == status
    assert ("error: told in words" in capsys.readouterr().err) == (context == 1)


def test_several_multiruns_write_into_one_file_at_once(here: Path) -> None:
    def write(name: str) -> None:
        for number in range(60):
            replace_lines(here / "jobs.jsonl", name, [f'{{"multirun": "{name}", "job": {number}}}\n'] * 3)

    with ThreadPoolExecutor(4) as several:
        list(several.map(write, "abcd"))  # raises what one of them raises
    found = Counter((here / "jobs.jsonl").read_text().splitlines())
    assert found == {f'{{"multirun": "{name}", "job": 59}}': 3 for name in "abcd"}


def test_the_output_of_a_job_is_told(here: Path) -> None:
    words = ["--multirun", "checkpoint=x", "slice=full,e2b", "output=o/${slice.name}"]
    assert start("slice", schema_of("slice"), lambda _: None, words) == 0
    assert [job["output"] for job in jobs_of(here)] == ["o/full", "o/e2b"]


def test_what_cannot_be_composed_is_refused_before_the_first_job(here: Path) -> None:
    assert start("plan", PlanRecipe, run, ["--multirun", "slice=full,nonsense"]) == 2
    assert not (here / "out/multirun/jobs.jsonl").exists()


def test_a_search_needs_a_recipe_with_a_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start("slice", schema_of("slice"), lambda _: None, ["--multirun", "hydra/sweeper=optuna"]) == 2
    assert "matslice slice gives none, matslice train its lowest validation loss" in capsys.readouterr().err
    assert start("plan", PlanRecipe, run, ["--multirun", "max_effective=interval(0,1)"]) == 2
    assert "add hydra/sweeper=optuna" in capsys.readouterr().err


def search(*words: str) -> int:
    """A search for the value next to 2."""
    pytest.importorskip("optuna")
    how = ["--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1"]
    return start("plan", PlanRecipe, distance, [*how, *words], gives="the distance to 2")


def best_value(directory: Path) -> float:
    """What the search itself wrote down as the best."""
    found = OmegaConf.to_container(OmegaConf.load(directory / "out/multirun/optimization_results.yaml"))
    assert isinstance(found, dict)
    return found["best_value"]


def distance(recipe: PlanRecipe) -> float | None:
    """A number to make small; 1 has none, and 3 is wrong."""
    if recipe.max_effective == 3:
        raise RuntimeError("three")
    return None if recipe.max_effective in (None, 1) else abs(recipe.max_effective - 2)


def test_a_search_goes_on_past_jobs_that_fail(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_trials=12", "max_effective=1,3,2.5,4") == 1
    found = {job["overrides"][0]: job for job in jobs_of(here)}
    assert {word: job["status"] for word, job in found.items()} == {
        "max_effective=1": "failed", "max_effective=3": "failed", "max_effective=2.5": "done", "max_effective=4": "done"
    }  # fmt: skip
    assert "no number to go by, which is the distance to 2" in found["max_effective=1"]["message"]
    told = capsys.readouterr().err.splitlines()
    assert told[-2].startswith("best: 0.5, of job ")
    assert told[-1].strip() == "matslice plan max_effective=2.5"
    assert best_value(here) == 0.5


@pytest.mark.slow
def test_a_search_comes_near_and_is_gone_on_with_from_its_storage(here: Path) -> None:
    kept = [
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.storage=sqlite:///search.db",
        "hydra.sweeper.study_name=near",
        "hydra.sweeper.n_trials=9",
    ]
    assert search("max_effective=interval(1.5,2.75)", *kept) == 0
    assert search("max_effective=interval(1.5,2.75)", *kept) == 0
    values = [job["value"] for job in jobs_of(here)]
    assert len(values) == 18
    assert best_value(here) == min(values) < 0.1


def test_a_search_of_which_every_job_fails_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("max_effective=1", "hydra.sweeper.n_trials=2") == 2
    told = capsys.readouterr().err
    assert "hydra/sweeper=optuna: no job gave a number, so none is best" in told
    assert "2 jobs: 2 failed" in told


@pytest.mark.slow
def test_training_gives_a_search_its_lowest_validation_loss(train: Any, chat: Path, here: Path) -> None:
    pytest.importorskip("optuna")
    how = ["--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.n_trials=2"]
    output = f"trainer.output={here}/${{optim.learning_rate}}"
    words = [*how, f"data.validation=[{chat}]", "optim.learning_rate=interval(1e-4,1e-2)", output]
    assert train(*words, "trainer.eval_every=1") == 0
    for job in jobs_of(here):
        states = json.loads((Path(job["output"]) / "summary.json").read_text())["sizes"]
        assert job["value"] == next(iter(states.values()))["best"]["loss"]
    assert best_value(here) == min(job["value"] for job in jobs_of(here))
