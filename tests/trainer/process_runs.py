# SPDX-License-Identifier: Apache-2.0
"""Several short runs, one after the other, in each of several processes: joining them takes longest.

accelerate launch … -m tests.trainer.process_runs '[{"output": "…", "sharded": true, …}, …]'
"""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import tests.torchvision_operators  # noqa: F401 - before peft, which imports it by way of transformers
from model.adapter.lora import AdapterConfig
from model.adapter.targets import TargetSet
from model.errors import CheckpointError, DivergenceError
from model.freezing import Part
from model.recompute import RecomputeConfig
from tests.trainer.parts import Hook, elastic, media_trainer, tiny_trainer, trainer_config
from tests.trainer.streams import streamed
from tests.trainer.zero_on_cpu import compile_nothing
from trainer import checkpoint
from trainer.average import AverageConfig
from trainer.elastic import ElasticPolicy
from trainer.loop import Trainer
from trainer.optimizers.config import GroupConfig
from trainer.retention import CHECKPOINTS, checkpoint_at
from trainer.runtime import SHARDING
from trainer.sinks import METRICS_FILE, read_records
from trainer.zero_config import USING_ZERO, ZERO_FILE

ENDING_FILE = "ending_{}.txt"


def build(wishes: dict[str, Any]) -> Trainer:
    """A run as it is wished for.

    ``sharded``: by FSDP2; ``zero``: by DeepSpeed's ZeRO, this stage of it, ``offloaded`` to this device, with more in
    its ``section`` of DeepSpeed's config; ``groups``: of the optimizer, each as its config has it; ``goes_on_from``:
    the directory of a run to go on with, a copy of it, after ``step``; ``asked_to_stop``: the process that is sent
    SIGTERM after the first step; ``stream``: the file that rows are read from while it trains.
    """
    wishes = dict(wishes)
    os.environ[SHARDING], os.environ["FSDP_VERSION"] = str(wishes.pop("sharded", False)).lower(), "2"
    stage, offloaded = wishes.pop("zero", None), wishes.pop("offloaded", "none")
    section = wishes.pop("section", None)
    os.environ.pop(ZERO_FILE, None)
    os.environ[USING_ZERO] = str(stage is not None).lower()
    if stage is not None:
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(stage)
        os.environ["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] = offloaded
        compile_nothing()
    if section is not None:
        file = json.dumps({"zero_optimization": {"stage": stage, **section}})
        os.environ["ACCELERATE_CONFIG_DS_FIELDS"] = ""  # what the launcher's file has beside this
        os.environ[ZERO_FILE] = base64.urlsafe_b64encode(file.encode()).decode()  # as Accelerate takes it, too
    output = Path(wishes.pop("output"))
    if (source := wishes.pop("goes_on_from", None)) is not None:
        wishes["resume"] = True
        if os.environ.get("RANK", "0") == "0":
            copy_until(Path(source), output, step=wishes.pop("step"))
        wishes.pop("step", None)
    policy, names = ElasticPolicy(wishes.pop("policy", "off")), wishes.pop("names", ("full", "short"))
    targets, media = wishes.pop("adapter", None), wishes.pop("media", False)
    adapter = targets and AdapterConfig(rank=4, alpha=8, dropout=0.0, targets=[TargetSet(name) for name in targets])
    frozen = [Part(name) for name in wishes.pop("frozen", [])]
    stopped, stream = wishes.pop("asked_to_stop", None), wishes.pop("stream", None)
    wishes["average"] = AverageConfig(decay=wishes.pop("decay", None))
    groups = [GroupConfig(**group) for group in wishes.pop("groups", [])]
    config = trainer_config(output, recompute=RecomputeConfig(**wishes.pop("recompute", {})), **wishes)
    torch.manual_seed(0)  # before the factors of an adapter are drawn
    if media:
        return media_trainer(config, adapter=adapter, frozen=frozen, elastic_config=elastic(policy, names),
                             may_leave_unused=stage is None)  # fmt: skip
    hooks = [Hook(1, lambda: os.kill(os.getpid(), signal.SIGTERM))] if os.environ.get("RANK") == str(stopped) else []
    trainer = tiny_trainer(
        config, elastic_config=elastic(policy, names), adapter=adapter, num_validation=5, more_sinks=hooks,
        groups=groups,
    )  # fmt: skip
    return trainer if stream is None else streamed(trainer, Path(stream), workers=2)


def copy_until(source: Path, target: Path, *, step: int) -> None:
    """A run as it was after ``step`` steps, of which it has a checkpoint."""
    shutil.copytree(source, target, symlinks=True)
    for path in (target / CHECKPOINTS).iterdir():
        if path != checkpoint_at(target, step):
            shutil.rmtree(path)
    kept = [json.dumps(record) + "\n" for record in read_records(source / METRICS_FILE) if record["step"] <= step]
    (target / METRICS_FILE).write_text("".join(kept), encoding="utf-8")


def main(runs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    for wishes in runs:  # ``spoiled``: the process that has an infinite gradient; ``full``: the one whose disk is full
        trainer = build({key: value for key, value in wishes.items() if key not in ("spoiled", "full")})
        process = trainer.accelerator.process_index
        if "spoiled" in wishes:
            ending = spoil(trainer, here=process == wishes["spoiled"])
        elif "full" in wishes:
            ending = fill(trainer, here=process == wishes["full"])
        else:
            trainer.fit()
            ending = str(trainer.ending)
        (trainer.run.directory / ENDING_FILE.format(process)).write_text(ending, encoding="utf-8")


def spoil(trainer: Trainer, *, here: bool) -> str:
    """Have an infinite gradient after the first step, if it is in this process; tell how training ends with it."""
    before: dict[str, torch.Tensor] = {}
    first = next(own for own in trainer.model.parameters() if own.requires_grad)

    def go_wrong() -> None:
        before.update({name: own.detach().clone() for name, own in trainer.model.named_parameters()})
        if here:
            first.register_hook(lambda gradient: gradient * math.inf)

    trainer.sinks = [*trainer.sinks, Hook(1, go_wrong)]
    try:
        trainer.fit()
    except DivergenceError as error:
        same = all(torch.equal(own, before[name]) for name, own in trainer.model.named_parameters())
        return f"{error}\nweights: {'as they were' if same else 'changed'}"
    return "nothing went wrong"


def fill(trainer: Trainer, *, here: bool) -> str:
    """Have the disk be full from the second checkpoint on, if it is this process's; tell how training ends with it."""
    writing = checkpoint.write_tensors

    def fail(value: Any, path: Path) -> None:
        if checkpoint_at(trainer.run.directory, 1).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        writing(value, path)

    if here:
        checkpoint.write_tensors = fail
    try:
        trainer.fit()
    except CheckpointError as error:
        return str(error)
    finally:
        checkpoint.write_tensors = writing
    return "nothing went wrong"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
