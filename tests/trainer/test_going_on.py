# SPDX-License-Identifier: Apache-2.0
"""A run goes on elsewhere, with other sizes of micro-batches, after a signal, and on a disk that was full."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.adapter.lora import AdapterConfig
from model.errors import CheckpointError
from tests.trainer.parts import Hook, losses, rows, spelling, tiny_trainer, trainer_config
from trainer.data.collate import Collator
from trainer.data.loader import Loader
from trainer.data.pack import pack_rows
from trainer.evaluation.held_out import Score
from trainer.loop import Trainer
from trainer.retention import steps_of
from trainer.sinks import METRICS_FILE, read_records
from trainer.stopping import Ending

ADAPTER = AdapterConfig(rank=2, alpha=4)
PACK_TOKENS = 60


def trainer(output: Path, *, hook: Hook | None = None, num_validation: int = 0, **changes: Any) -> Trainer:
    """Six steps of four rows."""
    config = trainer_config(output, **{"max_steps": 6, "batch_size": 4, "save_every": 2} | changes)
    hooks = [hook] if hook else []
    return tiny_trainer(config, adapter=ADAPTER, num_validation=num_validation, more_sinks=hooks)


def packed(made: Trainer) -> Trainer:
    """The same on packs of rows."""
    found = rows(spelling(23))
    packs = pack_rows(found, budget=PACK_TOKENS, seed=made.config.seed, shuffle=True)
    made.loader = Loader(
        found, batch_size=made.config.batch_size, seed=made.config.seed, collator=Collator(0), packs=packs
    )  # fmt: skip
    return made


def cut_after(step: int, run: Path) -> None:
    """Leave what a run has that was killed after ``step``."""
    for later in (one for one in steps_of(run) if one > step):
        shutil.rmtree(run / "checkpoints" / f"step_{later:06d}")


def rows_of_steps(made: Trainer) -> list[list[str]]:
    """The rows of every step, wherever in it they are."""
    return [
        sorted(row.where for row in made.rows_of_step(step * made.rows_per_step))
        for step in range(made.config.num_steps)
    ]


def test_a_run_goes_on_in_other_micro_batches_of_the_same_packs_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = packed(trainer(tmp_path / "run", keep_checkpoints=9))
    assert isinstance(whole.loader, Loader)
    assert whole.loader.packs.budget is not None
    whole.fit()
    expected, before = losses(tmp_path / "run"), rows_of_steps(whole)
    cut_after(2, tmp_path / "run")
    changes: dict[str, Any] = {"batch_size": 2, "gradient_accumulation": 2, "loss_chunk_bytes": 4096}
    capsys.readouterr()
    other = packed(trainer(tmp_path / "run", resume=True, **changes))
    told = "no longer bitwise: trainer.batch_size 4 → 2, trainer.gradient_accumulation 1 → 2, trainer.loss_chunk_bytes "
    assert told in capsys.readouterr().err
    assert rows_of_steps(other) == before
    other.fit()
    assert losses(tmp_path / "run")[:2] == expected[:2]
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-5)  # sums in another order
    again = trainer(tmp_path / "run", resume=True, **changes)  # told once
    assert "bitwise" not in capsys.readouterr().err
    again.run.close()


def test_where_a_run_goes_on_is_told_by_what_is_really_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, max_steps=2, threads=1).fit()
    capsys.readouterr()
    threads = torch.get_num_threads()
    try:
        trainer(tmp_path, max_steps=2, threads=2, resume=True).run.close()
    finally:
        torch.set_num_threads(threads)
    assert f"'{tmp_path}' continues, but no longer bitwise: threads 1 → 2\n" in capsys.readouterr().err


def test_a_run_of_a_version_that_compared_more_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, max_steps=2).fit()
    stored = json.loads((tmp_path / "run.json").read_text())
    stored["run"]["trainer"]["batch_size"] = 4
    del stored["surroundings"]
    (tmp_path / "run.json").write_text(json.dumps(stored))
    trainer(tmp_path, max_steps=2, resume=True).run.close()
    assert "bitwise" not in capsys.readouterr().err
    assert "surroundings" in json.loads((tmp_path / "run.json").read_text())


def interrupted(output: Path, **changes: Any) -> Trainer:
    """A run that is asked to end in step 4, after which it would have been measured."""
    ask = Hook(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return trainer(output, hook=ask, num_validation=2, **{"eval_every": 2, "keep_best": True} | changes)


def measured_steps(output: Path) -> list[int]:
    return [record["step"] for record in read_records(output / METRICS_FILE) if record["kind"] == "validation"]


def test_what_a_signal_left_unmeasured_is_measured_once_and_may_be_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter([3.0, 1.0, 2.0])

    def evaluate(_self: Trainer) -> list[Score]:
        return [Score(loss_sum=next(left), supervised_tokens=1, exact=0, examples=1)]

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    assert interrupted(tmp_path).fit().step == 4
    assert (tmp_path / "best").resolve().parent.name == "step_000002"
    words: dict[str, Any] = {"eval_every": 2, "keep_best": True, "num_validation": 2, "resume": True}
    stopped = trainer(tmp_path, hook=Hook(4, lambda: None), **words)
    monkeypatch.setattr(Trainer, "advance", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()  # it has measured, and is killed in the next step
    assert (tmp_path / "best").resolve().parent.name == "step_000004"
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    state = trainer(tmp_path, **words).fit()
    assert (state.step, state.best_step, state.best_loss) == (6, 4, 1.0)
    assert measured_steps(tmp_path) == [2, 4, 6]
    assert (tmp_path / "best").resolve().parent.name == "step_000004"
    assert not (tmp_path / "state.json").exists()


def test_a_measurement_that_was_lost_is_made_again_and_logged_once(tmp_path: Path) -> None:
    interrupted(tmp_path, max_steps=4).fit()
    words: dict[str, Any] = {"eval_every": 2, "keep_best": True, "num_validation": 2, "resume": True, "max_steps": 4}
    assert trainer(tmp_path, **words).fit().evaluated_at == 4
    assert measured_steps(tmp_path) == [2, 4]
    (tmp_path / "state.json").write_text("{")  # as a disk may leave it
    assert trainer(tmp_path, **words).fit().evaluated_at == 4
    assert measured_steps(tmp_path) == [2, 4]
    again = trainer(tmp_path, **words)
    again.evaluate = lambda: pytest.fail("it is measured")
    assert again.fit().evaluated_at == 4
    assert again.ending is Ending.done


def test_a_fork_has_no_best_before_it_has_measured(tmp_path: Path) -> None:
    fork = trainer(tmp_path, keep_best=True, num_validation=2, eval_every=2, max_steps=2)
    fork.save_first = True
    fork.evaluate = lambda: [Score(loss_sum=float("nan"), supervised_tokens=1, exact=0, examples=1)]
    fork.fit()
    assert steps_of(tmp_path) == [0, 2]
    assert not (tmp_path / "best").is_symlink()


@pytest.fixture
def with_best(tmp_path: Path) -> Path:
    """A run of six steps whose second evaluation is the best."""
    made = trainer(tmp_path / "run", keep_best=True, num_validation=2, eval_every=2, keep_checkpoints=1, save_every=1)
    left = iter([3.0, 1.0, 2.0])
    made.evaluate = lambda: [Score(loss_sum=next(left), supervised_tokens=1, exact=0, examples=1)]
    made.fit()
    assert steps_of(tmp_path / "run") == [4, 6]
    return tmp_path / "run"


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_run_that_was_copied_without_its_links_goes_on(with_best: Path, tmp_path: Path, *, keep_best: bool) -> None:
    copy = shutil.copytree(with_best, tmp_path / "copy")  # what they point to, in their place
    assert not (copy / "best").is_symlink()
    trainer(copy, keep_best=keep_best, num_validation=2, eval_every=2, save_every=1, resume=True).run.close()
    assert (copy / "best").is_symlink() == keep_best
    assert (copy / "best").is_dir() == keep_best


def test_a_best_checkpoint_that_is_gone_is_told(with_best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(with_best / "checkpoints" / "step_000004")
    trainer(with_best, keep_best=True, num_validation=2, eval_every=2, save_every=1, resume=True).run.close()
    assert "validation loss so far is of step 4, whose checkpoint is not there any more" in capsys.readouterr().err
    assert not (with_best / "best").is_symlink()


@pytest.fixture
def unlimited() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("file", ["optimizer.pt", "weights/adapter_model.safetensors", "random_0.pt"])
def test_files_that_the_system_does_not_write_leave_the_earlier_checkpoint(tmp_path: Path, file: str) -> None:
    def fill() -> None:
        size = (tmp_path / "checkpoints" / "step_000002" / file).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 64, resource.RLIM_INFINITY))

    with pytest.raises(CheckpointError, match=r"step_000004: the checkpoint could not be .*; that of step 2 is as it"):
        trainer(tmp_path, hook=Hook(3, fill)).fit()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]
    assert trainer(tmp_path, resume=True).fit().step == 6


def test_links_that_cannot_be_made_are_told_beside_the_checkpoint_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.retention.link", full)
    with pytest.raises(CheckpointError, match=r"is written, but links to it or older .* step 2 is whole\. Make room"):
        trainer(tmp_path).fit()
    monkeypatch.undo()
    assert trainer(tmp_path, resume=True).fit().step == 6
    assert (tmp_path / "weights").is_dir()
