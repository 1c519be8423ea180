# SPDX-License-Identifier: Apache-2.0
"""Two processes train what one process trains with twice the batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType

from model.errors import ConfigError
from model.freezing import Part
from tests.trainer.parts import elastic, media_trainer, tiny_trainer, trainer_config
from trainer.elastic import ElasticPolicy
from trainer.runtime import start
from trainer.sinks import METRICS_FILE, read_records

ROOT = Path(__file__).parents[2]
NAMES = ("full", "short")  # the last pass of a step, the one that gradients are exchanged in, skips layers


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch_two(wishes: dict[str, Any]) -> None:
    """Run ``tests.trainer.program`` in two processes."""
    subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port", str(free_port()), "-m", "tests.trainer.program", json.dumps(wishes)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=280,
    )  # fmt: skip


def assert_the_same_but_for_rounding(one: Path, two: Path, *, loss: float = 1e-5, later_norms: float = 4e-3) -> None:
    """Compare the records of two runs.

    Args:
        one: The directory of a run.
        two: That of another.
        loss: How far losses may be apart, in nats.
        later_norms: How far, relatively, norms of the gradient after the first step.
    """
    alone_records, together_records = (list(read_records(path / METRICS_FILE)) for path in (one, two))
    for alone, together in zip(alone_records, together_records, strict=True):
        # float32 sums in another order; after a step of Adam, which magnifies the smallest gradients. One process
        # alone shows as much: with the rows of four micro-batches of two in two of four, or in eight of one, norms of
        # its first step are 1e-6 apart, those of its second 1e-4 and 3e-4, and its third 5e-4 and 1e-3: a unit of a
        # sparse layer that comes to lie on the other side of its threshold changes a gradient by more than rounding.
        assert together["loss"] == pytest.approx(alone["loss"], abs=loss)
        assert together.keys() == alone.keys()
        for exact in ("step", "epoch", "examples", "learning_rate"):
            assert together.get(exact) == alone.get(exact)
        # Clipping and Adam hide the gradient's size from the losses. It is off by the number of processes if their
        # mean is taken for their sum.
        if alone["kind"] == "train":
            allowed = 1e-5 if alone["step"] == 1 else later_norms
            assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=allowed)


def test_two_processes_have_the_losses_of_one_with_the_doubled_batch(tmp_path: Path) -> None:
    launch_two({"output": str(tmp_path / "two"), "policy": "sandwich", "names": NAMES, "batch_size": 2,
                "gradient_accumulation": 2, "max_steps": 2, "eval_every": 1})  # fmt: skip
    # The same micro-batches, so that only their gradients are added up in another order.
    config = trainer_config(tmp_path / "one", batch_size=2, gradient_accumulation=4, max_steps=2, eval_every=1)
    tiny_trainer(config, elastic_config=elastic(ElasticPolicy.sandwich, NAMES), num_validation=5).fit()
    assert [record["kind"] for record in read_records(tmp_path / "two" / METRICS_FILE)] == [
        "train", "validation", "validation",
    ] * 2  # fmt: skip
    # The first step was found to be the same to the last bit, losses of the second 2e-7 apart, those after it 2e-5.
    assert_the_same_but_for_rounding(tmp_path / "one", tmp_path / "two", loss=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [[], [Part.text, Part.embedders]], ids=["everything", "towers alone"])
def test_processes_train_towers_together_although_some_of_their_batches_hold_no_media(
    tmp_path: Path, frozen: list[Part]
) -> None:
    wishes = {"batch_size": 1, "gradient_accumulation": 1, "max_steps": 5}  # every row of one epoch
    launch_two({"output": str(tmp_path / "two"), "media": True, "frozen": frozen, "policy": "sandwich",
                "names": NAMES, **wishes})  # fmt: skip
    config = trainer_config(tmp_path / "one", **wishes | {"gradient_accumulation": 2})  # the same micro-batches
    trainer = media_trainer(config, frozen=frozen, elastic_config=elastic(ElasticPolicy.sandwich, NAMES))
    has_picture = [bool(row.pictures) for position in range(10) for row in trainer.loader.take(position)]
    pairs = [has_picture[start : start + 2] for start in range(0, 10, 2)]
    assert [True, False] in pairs or [False, True] in pairs
    trainer.fit()
    # Five steps of Adam. A gradient that one process kept to itself would be far off.
    assert_the_same_but_for_rounding(tmp_path / "one", tmp_path / "two", loss=3e-4)


def test_processes_that_nothing_joins_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(trainer_config(tmp_path), may_leave_unused=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were launched, but 1 joined"):
        start(trainer_config(tmp_path), may_leave_unused=False)


def test_accumulation_in_the_environment_does_not_change_the_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def norm(name: str) -> float:
        tiny_trainer(trainer_config(tmp_path / name, max_steps=1)).fit()
        return next(read_records(tmp_path / name / METRICS_FILE))["gradient_norm"]

    expected = norm("plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert norm("changed") == expected


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "true", "conf/accelerate/ddp.yaml"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--dynamo_backend no"),
    ],
)
def test_what_the_loop_is_not_written_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, instead: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"the environment has {name}={value}.*{instead}"):
        start(trainer_config(tmp_path), may_leave_unused=False)


def test_another_kind_of_distribution_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ConfigError, match="Accelerate is set up for DEEPSPEED"):
        start(trainer_config(tmp_path), may_leave_unused=False)
